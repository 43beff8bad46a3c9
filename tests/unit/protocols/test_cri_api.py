"""cri.proto is the wire of other people's kubelets: its names, numbers and types are those of Kubernetes, whatever we change."""

import hashlib

from google.protobuf.descriptor import Descriptor, EnumDescriptor

from strata.protocols import cri_pb2

WIRE = "3c3c21ebf477cf7abca46a0b3ac2c2ff3e0489ee578210810f1d79468533e147"
"""Of `facts`, taken from k8s.io/cri-api pkg/apis/runtime/v1/api.proto (1.37.0-beta.0 and what followed until July 2026: all of
1.36.3, and then CheckpointPod, RestorePod, mount_options, and SIGNAL_ before the names of signals), without Windows."""


def facts() -> list[str]:
    """A line for each field, each value of an enumeration, and each call."""
    found: list[str] = []

    def enumeration(each: EnumDescriptor) -> None:
        found.extend(f"{each.full_name}.{value.name} {value.number}" for value in each.values)

    def message(each: Descriptor) -> None:
        for field in each.fields:
            of = field.message_type or field.enum_type
            one = field.containing_oneof.name if field.containing_oneof else ""
            kind = f"{field.type} {'many' if field.is_repeated else 'one'} {of.full_name if of else ''} {one}"
            found.append(f"{field.full_name} {field.number} {kind}")
        for inner in each.nested_types:
            message(inner)
        for values in each.enum_types:
            enumeration(values)
        found.append(each.full_name)

    for each in cri_pb2.DESCRIPTOR.message_types_by_name.values():
        message(each)
    for values in cri_pb2.DESCRIPTOR.enum_types_by_name.values():
        enumeration(values)
    for service in cri_pb2.DESCRIPTOR.services_by_name.values():
        for call in service.methods:
            streams = f"{call.client_streaming} {call.server_streaming}"
            found.append(f"{call.full_name} {call.input_type.full_name} {call.output_type.full_name} {streams}")
    return sorted(found)


def test_the_wire_is_that_of_kubernetes() -> None:
    assert hashlib.sha256("\n".join(facts()).encode()).hexdigest() == WIRE
