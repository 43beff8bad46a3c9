"""The wire protocols, without policy: what goes over a socket and in which form.

`cri.proto` and `highrt.proto` define the gRPC interfaces; `scripts/setup` generates their stubs beside them
(`cri_pb2`, `cri_grpc`, …). `grpc` serves and calls them over unix sockets. `spdy`, `remotecommand` and `portforward`
are the streams of exec, attach and port-forward. Nothing here imports a layer or `strata.linux`.
"""
