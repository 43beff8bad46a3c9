"""Images: from a registry, an archive or a Containerfile to a root file system that a container can be started on.

The entry point is `service.ImageService`. Below it lie the registry client (`registry`, `hosts`, `auth`), the content store
of blobs by digest (`content`), the unpacked layers and writable snapshots (`layers`, `snapshots`, and `worker`, the process
that unpacks), the metadata that names them (`metadata`), archives (`archive`) and builds (`build`, `containerfile`).
Nothing here knows pods or CRI.
"""
