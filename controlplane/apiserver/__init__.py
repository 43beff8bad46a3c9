"""The API server: the one door to a cluster's state.

A request passes one visible chain (`server.ApiServer._handle`): authenticate, authorize, decode, mutate, default,
validate, store, encode. A resource is one declaration (`resources`), and all of them are served by one generic set of
verbs (`verbs`). Lists and watches come from memory (`cache`), where an object is kept as the bytes that go out.
`python -m controlplane.apiserver` is a door for developers: no TLS, no authentication, loopback only.
"""
