"""Serve containerd as a proxy snapshotter whose EROFS layers are lazy.

Seekable EROFS layers are mounted at once and fetched as they are read; other layers are left to
containerd to unpack. Containers go on while this process is restarted, upgraded or killed. Needs
root and the extra "containerd" (pip install 'lazyfs[containerd]'). containerd's configuration:

  [proxy_plugins.lazyfs]
    type = "snapshot"
    address = "/run/lazyfs-snapshotter/snapshotter.sock"

docs/containerd.md tells the rest: which containerd can do what, credentials, Kubernetes.

Example:
  lazyfs snapshotter &
  lazyfs ctr-pull registry.example/app:1.2
  ctr run --rm --snapshotter lazyfs registry.example/app:1.2 one
"""

import argparse
import importlib.util
import logging
import os
from pathlib import Path

from lazyfs.cli.mount import add_fetching, add_seeing, fetching_options, metrics_address
from lazyfs.cli.options import add_hosts_dir, add_platform
from lazyfs.errors import LazyfsError
from lazyfs.mount.logs import LogChoice, log_to_stderr
from lazyfs.snapshotter.folders import ADDRESS, CONTAINERD, ROOT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--root",
        metavar="DIR",
        type=Path,
        default=ROOT,
        help="snapshots and mounts of layers (default: %(default)s)",
    )
    parser.add_argument(
        "--address",
        metavar="SOCKET",
        type=Path,
        default=ADDRESS,
        help="where containerd finds the snapshotter (default: %(default)s)",
    )
    cri = parser.add_argument_group("credentials (those of docker login count always)")
    cri.add_argument(
        "--cri",
        metavar="SOCKET",
        nargs="?",
        type=Path,
        const=CONTAINERD,
        help="pass CRI image requests on to containerd at SOCKET (default: %(const)s) and use the "
        "credentials that come with them; kubelet's --image-service-endpoint is then --address",
    )
    cri.add_argument(
        "--kubelet-provider-config",
        metavar="FILE",
        type=Path,
        help="ask kubelet's credential providers, as its --image-credential-provider-config",
    )
    cri.add_argument(
        "--kubelet-provider-bin-dir", metavar="DIR", type=Path, help="where their programs are"
    )
    add_platform(parser)
    add_fetching(parser.add_argument_group("fetching and keeping"))
    add_hosts_dir(parser)
    add_seeing(parser)
    parser.add_argument(
        "--own-metrics",
        metavar="ADDRESS",
        type=metrics_address,
        help="serve metrics of the snapshotter itself: lazy layers, those left to containerd, "
        "failures (--metrics: those of the store that fetches)",
    )


def check_extra() -> None:
    """Say what to install if gRPC is missing.

    Raises:
        LazyfsError.
    """
    for name in ("grpc", "google.protobuf"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise LazyfsError(f"{name} is missing: pip install 'lazyfs[containerd]'")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    check_extra()
    if os.geteuid() != 0:
        raise LazyfsError("only root can mount layers for containerd")
    if (args.kubelet_provider_config is None) != (args.kubelet_provider_bin_dir is None):
        raise LazyfsError("a credential provider needs its configuration and its folder")
    from lazyfs.snapshotter.process import Settings, serve

    choice = LogChoice(args.log_format, "debug" if args.debug else args.log_level)
    log_to_stderr(choice, logging.INFO, {"pid": os.getpid()})
    return serve(
        Settings(
            root=args.root.absolute(),
            address=args.address.absolute(),
            options=fetching_options(args),
            cri=args.cri,
            provider_config=args.kubelet_provider_config,
            provider_bin_dir=args.kubelet_provider_bin_dir,
            metrics=args.own_metrics,
        )
    )
