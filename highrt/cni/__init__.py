"""Pods' networks by the CNI specification 1.1: configuration lists, and plugins run as executables or in a warm helper."""
