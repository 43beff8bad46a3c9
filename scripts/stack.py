"""What scripts/up and scripts/down do, once scripts/setup has run.

A stack has a name (`default`, or that of --netns), state under /var/lib/strata/NAME, run-time files under
/run/strata/NAME and cgroups under /strata/NAME. Each daemon has a PID file `RUN/DAEMON.pid` ("PID START-TIME", so that a
PID that was used again is never mistaken for it) and a log `STATE/log/DAEMON.log`.
"""

import argparse
import asyncio
import fcntl
import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from strata.linux import cgroups, mounts, pidfds, syscalls  # noqa: E402

BIN = REPOSITORY / ".venv/bin"
DAEMONS = ("kubelet", "nodenet", "highrt", "controlplane", "registry")  # in the order in which they are stopped
REGISTRY = "127.0.0.1:5000"
NODE_NETWORK = "198.18.0"  # of the range for tests of isolated networks (RFC 2544)
GATEWAY = f"{NODE_NETWORK}.1"  # nobody has it: look-ups of a route succeed, and no packet gets anywhere
KUBELET_PORT = 10250
NETNS_FOLDER = "/run/netns"
NETNS_FOLDER_MADE = "netns-folder-made"  # iproute2 makes a mount of it when it is first used
READY_SECONDS = 120

REGISTRY_CONFIG = """version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}, delete: {{enabled: true}}}}
http: {{addr: "{address}"}}
"""


class Failure(Exception):
    """What went wrong, for people."""


class Stack:
    """The folders and processes of one stack."""

    def __init__(self, netns: str | None) -> None:
        self.netns = netns
        self.name = netns or "default"
        self.state, self.run = Path("/var/lib/strata") / self.name, Path("/run/strata") / self.name
        self.node_name = netns or socket.gethostname()
        own = self.run / "highrt/highrt.sock"
        self.highrt_socket = own if netns else Path("/run/highrt/highrt.sock")
        self.kubeconfig = self.state / "controlplane/admin.kubeconfig"

    # --- processes

    def pid_of(self, daemon: str) -> int | None:
        """The PID of a daemon that runs, else None."""
        try:
            pid, started = (int(word) for word in (self.run / f"{daemon}.pid").read_text().split())
            return pid if pidfds.start_time(pid) == started and not pidfds.is_zombie(pid) else None
        except (FileNotFoundError, ValueError, ProcessLookupError):
            return None

    def start(self, daemon: str, *argv: str | Path) -> None:
        """Starts a daemon, unless it runs."""
        if self.pid_of(daemon):
            return
        log = self.state / "log" / f"{daemon}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        write_whole(self.run / f"{daemon}.pid", f"{process.pid} {pidfds.start_time(process.pid)}\n")

    def stop(self, daemon: str, *, seconds: float = 15) -> None:
        """Ends a daemon: by SIGTERM, and by SIGKILL when that takes too long."""
        if pid := self.pid_of(daemon):
            pidfd = pidfds.open_pidfd(pid)
            pidfds.send_signal(pidfd, signal.SIGTERM)
            if not pidfds.wait_gone(pidfd, seconds):
                pidfds.send_signal(pidfd, signal.SIGKILL)
                pidfds.wait_gone(pidfd, 5)
            os.close(pidfd)
        (self.run / f"{daemon}.pid").unlink(missing_ok=True)

    def wait(self, what: str, daemon: str, condition: Callable[[], bool]) -> None:
        """Waits for a daemon to be of use. Raises Failure, with the end of its log, when it dies or takes too long."""
        start = time.monotonic()
        while not condition():
            if self.pid_of(daemon) is None or time.monotonic() - start > READY_SECONDS:
                why = "has ended" if self.pid_of(daemon) is None else f"is not there after {READY_SECONDS} s"
                log = self.state / "log" / f"{daemon}.log"
                lines = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
                raise Failure("\n".join([f"{what}: {daemon} {why}. The end of {log}:", *lines]))
            time.sleep(0.05)


# --- up


def up(arguments: argparse.Namespace) -> None:
    if arguments.link and not arguments.netns:
        raise Failure("--link needs --netns: it joins network namespaces")
    if arguments.join is not None:
        words_of_join(arguments.join)
    clock = Clock()
    stack = Stack(arguments.netns)
    for folder in (stack.state, stack.run):
        folder.mkdir(parents=True, exist_ok=True)
    with lock(stack.run / "lock"):
        address = set_up_network(stack, arguments.link)
        if subprocess.run(["nft", "list", "tables"], capture_output=True, check=False).returncode:
            raise Failure("nft cannot reach nftables in the kernel: load the module (modprobe nf_tables)")
        clock.say(f"network: node {stack.node_name} is {address}" + (f", in namespace {stack.netns}" if stack.netns else ""))
        clock.say("starting registry and image runtime" if arguments.join else "starting registry, image runtime, control plane")
        start_registry(stack)
        start_highrt(stack)
        if arguments.join is None:
            start_control_plane(stack, address)
        image = arguments.image or f"{REGISTRY}/hello:latest"
        stack.wait("image runtime", "highrt", lambda: answers_unix(stack.highrt_socket))
        clock.say("highrt answers on " + str(stack.highrt_socket))
        if arguments.join is None:
            stack.wait("API server", "controlplane", lambda: api_is_ready(stack, address))
            clock.say(f"API server answers on https://{address}:6443")
        clock.say("joining the node")
        join_node(stack, address, arguments.join)
        stack.wait("node's credentials", "kubelet", (stack.state / "kubelet/kubeconfig").exists)
        start_nodenet(stack)
        if not arguments.image:
            push_hello(stack, clock)
        kubeconfig = stack.kubeconfig if arguments.join is None else stack.state / "kubelet/kubeconfig"
        # A node that was Ready stays so for a while: its kubelet, started again, must answer too.
        stack.wait("kubelet", "kubelet", lambda: answers((address, KUBELET_PORT)))
        stack.wait("node", "kubelet", lambda: node_is_ready(stack, kubeconfig))
        clock.say(f"node {stack.node_name} is Ready")
        if arguments.join is None:
            clock.say(f"running a pod of {image}")
            run_first_pod(stack, image)
            clock.say("pod hello is Running")
    tell_what_next(stack, joined=arguments.join is not None)


def start_registry(stack: Stack) -> None:
    """Debian's docker-registry on the node's loopback: where images come from without any public registry."""
    if stack.pid_of("registry"):
        return
    if answers(("127.0.0.1", 5000)):
        raise Failure(f"another program already listens on {REGISTRY}: stop it, or use --netns")
    config = stack.state / "registry/config.yml"
    config.parent.mkdir(exist_ok=True)
    config.write_text(REGISTRY_CONFIG.format(root=config.parent / "data", address=REGISTRY))
    stack.start("registry", "docker-registry", "serve", config)


def start_highrt(stack: Stack) -> None:
    cni = stack.state / "nodenet/cni"
    cni.mkdir(parents=True, exist_ok=True)
    stack.start(
        "highrt", BIN / "highrt", "serve", "--name", stack.name,
        "--root", stack.state / "highrt", "--state", stack.run / "highrt",
        "--listen", f"unix://{stack.highrt_socket}", "--cni-conf-dir", cni,
    )  # fmt: skip


def start_control_plane(stack: Stack, address: str) -> None:
    if stack.pid_of("controlplane") is None and answers((address, 6443)):
        raise Failure(f"another program already listens on {address}:6443: stop it, or use --netns")
    stack.start(
        "controlplane", BIN / "controlplane", "serve", "--data-dir", stack.state / "controlplane", "--bind-address", "0.0.0.0",
        "--secure-port", "6443", "--advertise-address", address, "--service-cidr", "10.96.0.0/16", "--pod-cidr", "10.244.0.0/16",
    )  # fmt: skip


def join_node(stack: Stack, address: str, command: str | None) -> None:
    """Starts the kubelet: the first time by joining, with the given command or one of our own control plane's."""
    if stack.pid_of("kubelet"):
        return
    root = stack.state / "kubelet"
    options = [
        "--root-dir", root, "--node-ip", address, "--container-runtime-endpoint", f"unix://{stack.highrt_socket}",
        "--cgroup-root", f"/strata/{stack.name}", "--pod-log-dir", stack.state / "log/pods",
    ]  # fmt: skip
    kubeconfig = root / "kubeconfig"
    if kubeconfig.exists():
        named = ("--kubeconfig", kubeconfig, "--hostname-override", stack.node_name)
        stack.start("kubelet", BIN / "kubelet", "run", *named, *options)
        return
    if command is None:
        made = subprocess.run(
            [BIN / "controlplane", "token", "create", "--data-dir", stack.state / "controlplane"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise Failure(f"controlplane token create: {made.stderr.strip()}")
        command = made.stdout.strip()
    stack.start("kubelet", BIN / "kubelet", *words_of_join(command), "--node-name", stack.node_name, *options)


def words_of_join(command: str) -> list[str]:
    """The arguments of a join command. Raises Failure for what is none."""
    words = shlex.split(command)
    if words[:2] != ["kubelet", "join"]:
        raise Failure("--join takes the whole command that `controlplane token create` prints: 'kubelet join https://…'")
    return words[1:]


def start_nodenet(stack: Stack) -> None:
    stack.start(
        "nodenet", BIN / "nodenet", "serve", "--kubeconfig", stack.state / "kubelet/kubeconfig", "--node-name", stack.node_name,
        "--cni-conf-dir", stack.state / "nodenet/cni", "--state-dir", stack.state / "nodenet",
    )  # fmt: skip


def push_hello(stack: Stack, clock: "Clock") -> None:
    """Builds images/hello and pushes it to the registry on loopback, unless it is there."""
    reference = f"{REGISTRY}/hello:latest"
    stack.wait("registry", "registry", lambda: answers(("127.0.0.1", 5000)))
    connection = http.client.HTTPConnection("127.0.0.1", 5000, timeout=10)
    connection.request("HEAD", "/v2/hello/manifests/latest", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    found = connection.getresponse().status == 200
    connection.close()
    if found:
        return
    highrt = (BIN / "highrt", "--address", f"unix://{stack.highrt_socket}")
    clock.say("building images/hello")
    run("build images/hello", REPOSITORY / "images/build", "hello", "--tag", reference, "--address", highrt[2])
    clock.say(f"pushing it to {reference}")
    show("push images/hello", *highrt, "push", reference)
    # The pod shall pull it, as every pod does: what was built here is taken away again.
    run("remove the built image", *highrt, "rmi", reference)


def run_first_pod(stack: Stack, image: str) -> None:
    kubectl = ("kubectl", f"--kubeconfig={stack.kubeconfig}")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "hello", "labels": {"run": "hello"}},
        "spec": {"containers": [{"name": "hello", "image": image}]},
    }
    there = subprocess.run([*kubectl, "get", "pod", "hello"], capture_output=True, check=False).returncode == 0
    if not there:
        run("create the pod", *kubectl, "create", "-f", "-", given=json.dumps(pod))
    try:
        run("wait for the pod", *kubectl, "wait", "--for=condition=Ready", "pod/hello", f"--timeout={READY_SECONDS}s")
    except Failure as failure:
        described = subprocess.run([*kubectl, "describe", "pod", "hello"], capture_output=True, text=True, check=False).stdout
        raise Failure(f"{failure}\n{described}") from None


def tell_what_next(stack: Stack, *, joined: bool) -> None:
    inside = f"nsenter --net=/run/netns/{stack.netns} " if stack.netns else ""
    address = f" --address unix://{stack.highrt_socket}" if stack.netns else ""
    lines = ["", f"The stack {stack.name} runs. Logs are in {stack.state}/log. To see more:", ""]
    if joined:
        lines += [f"    {inside}highrt{address} ps -a", f"    scripts/down{f' --netns {stack.netns}' if stack.netns else ''}"]
    else:
        kubectl = f"{inside}kubectl"
        lines += [
            f"    {kubectl} get pods -A -o wide",
            f"    {kubectl} logs -f hello",
            f"    {kubectl} exec -it hello -- sh",
            f"    {inside}controlplane token create --data-dir {stack.kubeconfig.parent}   # how another node joins",
            f"    scripts/down{f' --netns {stack.netns}' if stack.netns else ''}",
            "",
            "kubectl must be told where the cluster is:",
            "",
            f"    export KUBECONFIG={stack.kubeconfig}",
            "",
            f"kubeconfig: {stack.kubeconfig}",
        ]
    print("\n".join(lines), flush=True)


# --- the network of a stack in a namespace


def set_up_network(stack: Stack, link: str | None) -> str:
    """Makes the namespace where it is missing, goes into it, and returns the node's address."""
    if stack.netns is None:
        return own_address()
    # What is meant for such a node, but sent from outside its namespace, must not look for it beyond this machine.
    ip("route", "replace", "unreachable", f"{NODE_NETWORK}.0/24")
    if not os.path.ismount(NETNS_FOLDER):
        (stack.run.parent / NETNS_FOLDER_MADE).touch()
    if not Path("/run/netns", stack.netns).exists():
        ip("netns", "add", stack.netns)
        (stack.run / "netns-made").touch()
    if (stack.run / "netns-made").exists() and not (stack.run / "address").exists():
        number = claim_number(stack, link)
        connect_namespace(stack, link)
        write_whole(stack.run / "address", f"{NODE_NETWORK}.{number}")
    descriptor = os.open(f"/run/netns/{stack.netns}", os.O_RDONLY)
    syscalls.setns(descriptor)
    os.close(descriptor)
    if not (stack.run / "address").exists():
        return own_address()  # somebody else's namespace: as it is
    address = (stack.run / "address").read_text()
    ip("link", "set", "lo", "up")
    ip("link", "set", "eth0", "up")
    ip("address", "replace", f"{address}/24", "dev", "eth0")
    ip("route", "replace", "default", "via", GATEWAY, "dev", "eth0")
    return address


def connect_namespace(stack: Stack, link: str | None) -> None:
    """eth0 of the namespace: a veth into the link's bridge, or one whose other end lies in the same namespace, unconnected."""
    if link is None:
        with inside(stack.name):
            ip("link", "add", "eth0", "type", "veth", "peer", "name", "uplink0")
            ip("link", "set", "uplink0", "up")
        return
    if not Path("/run/netns", link).exists():
        ip("netns", "add", link)
        with inside(link):
            ip("link", "add", "bridge0", "type", "bridge")
            ip("link", "set", "bridge0", "up")
    port = f"p{stack.name}"[:15]
    with inside(stack.name):
        ip("link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", link)
    with inside(link):
        ip("link", "set", port, "master", "bridge0", "up")


def claim_number(stack: Stack, link: str | None) -> int:
    """The last part of the node's address, different from that of every other node of the link."""
    if link is None:
        return 2
    folder = links_folder(link)
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / "lock"):
        taken = {int(file.read_text()) for file in folder.glob("node-*")}
        number = next(n for n in range(2, 255) if n not in taken)
        (folder / f"node-{stack.name}").write_text(str(number))
    write_whole(stack.run / "link", link)
    return number


def links_folder(link: str) -> Path:
    return Path("/run/strata/links") / link


def take_network_away(stack: Stack) -> None:
    if not (stack.run / "netns-made").exists():
        return
    if Path("/run/netns", stack.name).exists():
        ip("netns", "delete", stack.name)
    if not (stack.run / "link").exists():
        return
    link = (stack.run / "link").read_text()
    folder = links_folder(link)
    if not folder.exists():
        return
    with lock(folder / "lock"):
        (folder / f"node-{stack.name}").unlink(missing_ok=True)
        if not any(folder.glob("node-*")):
            if Path("/run/netns", link).exists():
                ip("netns", "delete", link)
            shutil.rmtree(folder)
    with suppress(OSError):
        folder.parent.rmdir()


def own_address() -> str:
    """The address of this machine's (or namespace's) default route, else its first one."""
    for command in (("-j", "route", "get", "192.0.2.1"), ("-j", "-4", "address", "show", "up", "scope", "global")):
        done = subprocess.run(["ip", *command], capture_output=True, text=True, check=False)
        for entry in json.loads(done.stdout or "[]") if done.returncode == 0 else ():
            if address := entry.get("prefsrc") or next((a["local"] for a in entry.get("addr_info", ())), None):
                return str(address)
    raise Failure("this machine has no address but loopback: give it one, or use --netns NAME")


# --- down


def down(arguments: argparse.Namespace) -> None:
    stack = Stack(arguments.netns)
    if not stack.run.exists() and not stack.state.exists():
        print(f"The stack {stack.name} is not there.")
        return
    stack.run.mkdir(parents=True, exist_ok=True)
    with lock(stack.run / "lock"):
        for daemon in ("kubelet", "nodenet"):
            stack.stop(daemon)
        remove_pods(stack)
        for daemon in DAEMONS:
            stack.stop(daemon)
        if stack.netns is None or Path("/run/netns", stack.netns).exists():
            inside = [f"--net=/run/netns/{stack.netns}"] if stack.netns else []
            enter = ["nsenter", *inside] if inside else []
            folder = stack.state / "nodenet/cni"
            run("take the node's network away", *enter, BIN / "nodenet", "cleanup", "--cni-conf-dir", folder)
        group = cgroups.open_cgroup(f"/strata/{stack.name}")
        group.kill()
        group.remove()
        stack.state.mkdir(parents=True, exist_ok=True)
        for folder in (stack.run, stack.state):
            mounts.umount_below(str(folder))
        take_network_away(stack)
        if not arguments.keep:
            shutil.rmtree(stack.state)
        shutil.rmtree(stack.run)
    stack.highrt_socket.unlink(missing_ok=True)
    if stack.netns and not any(stack.run.parent.glob("*/netns-made")):
        subprocess.run(["ip", "route", "delete", "unreachable", f"{NODE_NETWORK}.0/24"], capture_output=True, check=False)
    made = stack.run.parent / NETNS_FOLDER_MADE
    if made.exists() and not os.listdir(NETNS_FOLDER):
        mounts.umount(NETNS_FOLDER, mounts.DETACH)
        made.unlink()
    for folder in (stack.highrt_socket.parent, stack.run.parent, stack.state.parent):
        with suppress(OSError):
            folder.rmdir()  # others may still be in there
    remove_empty_cgroups()
    print(f"The stack {stack.name} is gone." + (f" Its data is still in {stack.state}." if arguments.keep else ""))


def remove_pods(stack: Stack) -> None:
    """Stops and removes all pods, a person's too, with what CNI made for them. highrt is started for it if it does not run."""
    if not (stack.state / "highrt").exists():
        return
    if stack.netns and not Path("/run/netns", stack.netns).exists():
        return
    with inside(stack.netns):
        start_highrt(stack)
    stack.wait("image runtime", "highrt", lambda: answers_unix(stack.highrt_socket))
    asyncio.run(remove_pods_of_kubelet(f"unix://{stack.highrt_socket}"))
    highrt = (BIN / "highrt", "--address", f"unix://{stack.highrt_socket}")
    persons = subprocess.run([*highrt, "ps", "-a", "-q"], capture_output=True, text=True, check=False).stdout.split()
    if persons:
        run("remove the containers", *highrt, "rm", "--force", *persons)


async def remove_pods_of_kubelet(endpoint: str) -> None:
    from strata.protocols import cri_pb2, grpc
    from strata.protocols.cri_grpc import RuntimeServiceStub

    channel = grpc.channel(endpoint)
    try:
        cri = RuntimeServiceStub(channel)
        for pod in (await cri.ListPodSandbox(cri_pb2.ListPodSandboxRequest(), timeout=30)).items:
            await cri.StopPodSandbox(cri_pb2.StopPodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
            await cri.RemovePodSandbox(cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod.id), timeout=60)
    finally:
        channel.close()


def remove_empty_cgroups() -> None:
    """The parent of all stacks' cgroups goes with the last of them."""
    with suppress(OSError):
        for folder in cgroups.open_cgroup("/strata").folders():
            os.rmdir(folder)


# --- small things


@contextmanager
def inside(netns: str | None) -> Iterator[None]:
    """Runs what is started meanwhile in a network namespace. (`ip -n` would need a root that is a mount: not so in a chroot.)"""
    if netns is None:
        yield
        return
    own, other = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/run/netns/{netns}", os.O_RDONLY)
    try:
        syscalls.setns(other)
        yield
    finally:
        syscalls.setns(own)
        os.close(own)
        os.close(other)


class Clock:
    """Tells what happened, with the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:5.1f} s] {text}", flush=True)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """One scripts/up or scripts/down of a stack at a time."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def run(what: str, *argv: str | Path, given: str | None = None) -> None:
    """Runs a command; what it printed goes into the Failure when it fails."""
    done = subprocess.run(
        list(map(str, argv)), input=given, stdin=None if given is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise Failure(f"{what}: `{shlex.join(map(str, argv))}` failed ({done.returncode}):\n{done.stdout.strip()}")


def show(what: str, *argv: str | Path) -> None:
    """Runs a command whose output the user sees: progress bars in a terminal, plain lines elsewhere."""
    if subprocess.run(list(map(str, argv)), stdin=subprocess.DEVNULL, check=False).returncode:
        raise Failure(f"{what}: `{shlex.join(map(str, argv))}` failed")


def ip(*argv: str) -> None:
    run("network", "ip", *argv)


def answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=2).close()
    except OSError:
        return False
    return True


def answers_unix(path: Path) -> bool:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:
        return False
    finally:
        sock.close()
    return True


def api_is_ready(stack: Stack, address: str) -> bool:
    if not stack.kubeconfig.exists():
        return False
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # it is only asked whether it is there
    connection = http.client.HTTPSConnection(address, 6443, timeout=5, context=context)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def node_is_ready(stack: Stack, kubeconfig: Path) -> bool:
    path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    command = ["kubectl", f"--kubeconfig={kubeconfig}", "get", "node", stack.node_name, "-o", path]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout == "True"


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.rename(path)


def fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/", description="Start the stack, or take it away.")
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", prog="scripts/up", description="Start the stack on this machine and run a pod.")
    start.add_argument("--netns", metavar="NAME", help="run the whole node in this network namespace (made if absent)")
    start.add_argument("--link", metavar="LAN", help="join the namespace to others that name the same link")
    start.add_argument("--join", metavar="COMMAND", help="be a node of another: what `controlplane token create` printed")
    start.add_argument("--image", metavar="REF", help="what the first pod runs (default: images/hello, built and pushed here)")
    start.set_defaults(call=up)
    end = commands.add_parser("down", prog="scripts/down", description="Stop the stack and take everything away.")
    end.add_argument("--netns", metavar="NAME", help="the stack in this network namespace")
    end.add_argument("--keep", action="store_true", help="leave images, the store and logs on disk")
    end.set_defaults(call=down)
    arguments = parser.parse_args()
    if arguments.netns and (len(arguments.netns) > 12 or not arguments.netns.replace("-", "").isalnum()):
        fail(f"--netns {arguments.netns}: use at most 12 letters, digits and dashes")
    # Whatever the caller's environment says: these processes run our interpreter, with its bytecode.
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME"):
        os.environ.pop(name, None)
    os.environ["PATH"] = f"{BIN}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    try:
        arguments.call(arguments)
    except Failure as failure:
        fail(f"scripts/{arguments.command}: {failure}")
    except KeyboardInterrupt:
        fail(f"\nscripts/{arguments.command}: interrupted; scripts/down takes away what was started")


if __name__ == "__main__":
    main()
