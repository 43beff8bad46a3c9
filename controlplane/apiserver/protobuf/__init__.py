"""Kubernetes' protobuf form of objects, which Go clients send for the built-in kinds.

`table.txt` holds the wire's facts (field numbers, names, types) of each message, one line a field; `generate` makes it from
the Kubernetes API's `generated.proto` and `types.go` files. `table` reads it, `codec` turns bytes into JSON objects and back,
and `envelope` opens and closes the `k8s\\0` wrapping (runtime.Unknown) around them. A kind that is not in the table is
not served in this form, and its clients fall back on JSON.
"""
