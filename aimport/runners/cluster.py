"""Engines on Dask distributed: worker processes of our own, or an existing cluster. The only importer of `distributed`.

Whoever can connect to a Dask scheduler or worker may have any code run there, as its user. So all connections are TLS
with certificates on both sides: of our own processes those of a key that is made for the run, of an existing cluster
those that Dask's own configuration names. Only to a loopback address is a scheduler's plain `tcp://` taken.

Dask moves chunks and what became of them; the journal says what is done. Tasks are named by run and shard, and what
they hold is packed, so that nothing of it is ever in a name, a key or a line that Dask logs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import pickle
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import dask.config
from distributed import Client, Future, LocalCluster, Security, Worker, WorkerPlugin
from distributed.scheduler import KilledWorker

from aimport.errors import ClusterLost, ConfigurationError
from aimport.logs import set_up_logging
from aimport.runners.chunks import (
    Chunk,
    Done,
    Versions,
    WorkerLost,
    greet,
    import_chunk,
    pack,
    unlike,
    unpack,
    versions,
)

logger = logging.getLogger(__name__)

START_S: Final = 60.0
"""How long workers may take to come up."""
RECONNECT_S: Final = 120.0
"""How long a scheduler that is gone, or the last of its workers, may take to come back."""
LOOK_S: Final = 10.0
"""How often somebody who waits for a chunk looks whether there is anybody to do it."""
CONNECT_S: Final = 10.0
CLOSE_S: Final = 10.0
SCRATCH: Final = "scratch"
"""Where Dask has workers keep what they do not have in memory, in the directory of the run: nothing, here."""
for _name in [*logging.root.manager.loggerDict]:
    if _name.split(".")[0] in ("distributed", "tornado"):  # in a worker too, which finds this task here
        logging.getLogger(_name).setLevel(logging.CRITICAL)  # what comes of it for a run is told in our own words
_QUIET: Final = {
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.allowed-failures": 0,  # who dies of what is found out here
}


class Packed:
    """Octets of a chunk or of what became of it; Dask shows no more of them than this name."""

    def __init__(self, octets: bytes) -> None:
        self.octets = octets


def work(driver: Versions, chunk: Packed) -> Packed:
    """The task."""
    if problem := unlike(driver):
        return packed(Done(failure=_of_other_version(problem)))
    try:
        task = unpack(chunk.octets)
        set_up_logging(task.level, task.form)
        return packed(import_chunk(task))
    except Exception as error:  # told by the driver: Dask would log it with the task
        logger.debug("chunk ended by a bug", exc_info=error)
        return packed(Done(bug=type(error).__name__))


def packed(done: Done) -> Packed:
    return Packed(pickle.dumps(done))


def _of_other_version(problem: str) -> ConfigurationError:
    return ConfigurationError(problem, hint="have the same versions of both on all machines")


class _Cluster:
    """What both have in common: chunks go to a scheduler, and what became of them comes back."""

    slots = 1
    elsewhere = False
    task: Callable[[Versions, Packed], Packed] = staticmethod(work)
    """What a worker does with a chunk."""

    def __init__(self) -> None:
        self._client: Client | None = None
        self._number = 0
        self._run = ""
        self._connecting = anyio.Lock()

    def _connect(self) -> Client:
        """Blocks.

        Raises:
            OSError: there is no scheduler.
        """
        raise NotImplementedError

    async def run(self, chunk: Chunk) -> Done:
        client = await self._connected()
        self._number += 1
        key = f"aimport-{chunk.directory.name}-{chunk.shard}-{self._number}"
        try:
            future = client.submit(self.task, versions(), Packed(pack(chunk)), key=key, pure=False)
            await self._settled(client, future)
            answer = await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
        except KilledWorker as error:
            raise WorkerLost(f"{error.last_worker.address} died") from None
        except (CancelledError, OSError, TimeoutError) as error:
            raise WorkerLost(f"connection lost ({type(error).__name__})") from None
        except ImportError as error:
            raise _cannot_import(error) from None
        done = pickle.loads(answer.octets)
        assert isinstance(done, Done)
        return done

    async def _settled(self, client: Client, future: Future[Packed]) -> None:
        """Waits for the end of a task, as long as there is anybody to do it.

        Raises:
            ClusterLost: no worker has been there for a long time.
        """
        over = anyio.Event()
        loop = asyncio.get_running_loop()

        def tell(_: Future[Packed]) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(over.set)

        future.add_done_callback(tell)
        alone_since = None
        while not over.is_set():
            with anyio.move_on_after(LOOK_S):
                await over.wait()
                return
            if client.status == "running" and not client.scheduler_info(n_workers=1)["workers"]:
                now = anyio.current_time()
                alone_since = alone_since or now
                if now - alone_since > RECONNECT_S:
                    raise ClusterLost("the cluster has had no worker for long", hint="start some, then resume")
                logger.warning("cluster has no workers, waiting")
            else:
                alone_since = None

    async def _connected(self) -> Client:
        """
        Raises:
            ClusterLost: the scheduler does not come back.
        """
        async with self._connecting:
            until = anyio.current_time() + RECONNECT_S
            told = False
            while True:
                if self._client is not None and self._client.status == "running":
                    return self._client
                if self._client is None or self._client.status in ("closed", "closing"):
                    try:
                        self._client = await anyio.to_thread.run_sync(self._connect)
                        continue
                    except (OSError, TimeoutError) as error:
                        if anyio.current_time() > until:
                            raise ClusterLost(
                                f"the scheduler does not answer ({type(error).__name__})", hint="start it, then resume"
                            ) from None
                if not told:
                    logger.warning("connection to the scheduler lost, waiting for it")
                    told = True
                await anyio.sleep(1)

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await anyio.to_thread.run_sync(partial(client.close, timeout=CLOSE_S))


class LocalWorkers(_Cluster):
    """So many processes on this machine, started anew when one dies. They end with this process, however it ends."""

    def __init__(self, workers: int) -> None:
        super().__init__()
        self.slots = workers
        self._cluster: LocalCluster | None = None
        self._scratch: Path | None = None

    async def start(self, directory: Path, token: str) -> None:
        try:
            self._client = await anyio.to_thread.run_sync(self._start, directory / SCRATCH)
        except (OSError, TimeoutError, RuntimeError) as error:
            raise ConfigurationError(f"--workers {self.slots}: workers do not start ({error})") from error

    def _start(self, scratch: Path) -> Client:
        try:
            security = Security.temporary()
        except ImportError as error:
            raise ConfigurationError("--workers needs the package cryptography", hint=INSTALL) from error
        dask.config.set(_QUIET)
        shutil.rmtree(scratch, ignore_errors=True)  # of a driver that was killed
        scratch.mkdir(mode=0o700)
        self._scratch = scratch
        self._cluster = LocalCluster(
            n_workers=self.slots,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            protocol="tls://",
            security=security,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
            memory_limit=None,
            local_directory=str(scratch),
        )
        client = self._connect()
        client.register_plugin(Deaf())
        return client

    def _connect(self) -> Client:
        assert self._cluster is not None
        return Client(self._cluster, set_as_default=False, timeout=CONNECT_S)

    async def close(self) -> None:
        await super().close()
        cluster, self._cluster = self._cluster, None
        if cluster is not None:
            await anyio.to_thread.run_sync(partial(cluster.close, timeout=CLOSE_S))
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


class Deaf(WorkerPlugin):
    """A terminal, and systemd, send their signals to all processes of a service; the driver decides what they mean."""

    def setup(self, worker: Worker) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)


class ClusterWorkers(_Cluster):
    """The workers of an existing scheduler, which may come and go."""

    elsewhere = True

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        own = Security().get_tls_config_for_role("client")
        if address.startswith("tls") and not (own["ca_file"] and own["cert"]):
            raise ConfigurationError(f"{address}: no certificates", hint=CERTIFICATES)

    async def start(self, directory: Path, token: str) -> None:
        client = await self._first()
        info = await anyio.to_thread.run_sync(partial(client.scheduler_info, n_workers=-1))
        for address in info["workers"]:
            check_address(address, "worker")
        self.slots = sum(worker["nthreads"] for worker in info["workers"].values())
        told = await anyio.to_thread.run_sync(
            partial(client.run, greet, directory, token, versions(), on_error="return")
        )
        for answer in told.values():
            if isinstance(answer, ImportError):
                raise _cannot_import(answer)
            if answer:
                raise ConfigurationError(
                    str(answer),
                    hint=f"{directory} must be a directory that all machines share, with the same name, the same owner"
                    " and working locks, and versions must be alike",
                )

    async def _first(self) -> Client:
        try:
            client = self._client = await anyio.to_thread.run_sync(self._connect)
            await anyio.to_thread.run_sync(partial(client.wait_for_workers, 1, timeout=START_S))
        except TimeoutError:
            if self._client is not None:
                raise ConfigurationError(f"{self._address} has no workers", hint="start some first") from None
            raise ConfigurationError(f"{self._address} does not answer") from None
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigurationError(f"{self._address}: {error}", hint=CERTIFICATES) from None
        return client

    def _connect(self) -> Client:
        dask.config.set(_QUIET)
        return Client(self._address, set_as_default=False, timeout=CONNECT_S, security=Security())


INSTALL: Final = "pip install 'aimport[cluster]'"
CERTIFICATES: Final = (
    "its certificates are those of Dask's configuration: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
    "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT, DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"
)


def scheduler_of(address: str | None, file: str | None) -> str:
    """The address of a scheduler, given as such or in the file that it writes.

    Raises:
        ConfigurationError: the file cannot be read; the connection would be open to everybody.
    """
    if file is not None:
        try:
            address = str(json.loads(Path(file).read_bytes())["address"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"--cluster-file {file}: {error}") from None
    assert address is not None
    check_address(address, "scheduler")
    return address


def check_address(address: str, what: str) -> None:
    """
    Raises:
        ConfigurationError: it is no address, or one that is not protected.
    """
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or port is None or parts.scheme not in ("tls", "tcp"):
        raise ConfigurationError(f"{what} {address!r} is no address", hint="write tls://HOST:PORT")
    if parts.scheme != "tls" and not _is_loopback(host):
        raise ConfigurationError(
            f"{what} {address}: whoever reaches it may have any code run there",
            hint="use tls:// with certificates on both sides; tcp:// only to a loopback address",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _cannot_import(error: ImportError) -> ConfigurationError:
    return ConfigurationError(
        f"a worker cannot import {error.name or error}", hint="install the same version of aimport where workers run"
    )
