"""CRI v1 over the daemon's core: thin services that check a request, ask the pod manager or the images, and word the answer.

A kubelet sees its own pods here, never a person's.
"""
