"""The service `strata.highrt.v1.Highrt`: what the commands of `highrt` call."""

from highrt.person.calls.files import FileCalls
from highrt.person.calls.images import ImageCalls
from highrt.person.calls.networks import NetworkCalls
from highrt.person.calls.pods import PodCalls
from highrt.person.calls.registries import RegistryCalls
from highrt.person.calls.sessions import SessionCalls
from highrt.person.calls.system import SystemCalls
from highrt.person.calls.volumes import VolumeCalls
from strata.protocols.highrt_grpc import HighrtBase


class PersonService(
    PodCalls, SessionCalls, FileCalls, ImageCalls, RegistryCalls, NetworkCalls, VolumeCalls, SystemCalls, HighrtBase
):
    """All of its calls; for how it is made see `Parts`."""
