"""Has a pool load its model anew when there is another version of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence

import anyio
import anyio.to_thread

from predictpool._errors import PoolClosed, WorkerStartError
from predictpool.predictors._source import ModelSource

logger = logging.getLogger("predictpool")


class Looks:
    """Tells from one look after another when a version is to be loaded.

    It must have been there, complete and unchanged, at two looks in a row, so that one which
    is being written is never taken; and one that failed is not tried again until it changes.
    """

    def __init__(self) -> None:
        self._seen: str | None = None
        self._failed: str | None = None

    def due(self, version: str | None, loaded: Collection[str | None]) -> bool:
        """Take a look into account.

        Args:
            version: what is there now; None for nothing that is complete.
            loaded: the versions that the workers have.
        """
        settled = version is not None and version == self._seen
        self._seen = version
        if version != self._failed:
            self._failed = None
        return settled and self._failed is None and any(old != version for old in loaded)

    def failed(self, version: str | None) -> None:
        """Remember a version that could not be loaded."""
        self._failed = version


class Watcher:
    """Looks for another version every so many seconds, and has it loaded.

    Args:
        seconds: from one look to the next.
        sources: tells that of the model which was loaded last, and those of all workers;
            none once the pool ends.
        reload: loads the model anew.
    """

    def __init__(
        self,
        seconds: float,
        sources: Callable[[], Sequence[ModelSource]],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        self._seconds = seconds
        self._sources = sources
        self._reload = reload
        self._looks = Looks()
        self._scope = anyio.CancelScope()
        self._trouble = ""

    async def run(self) -> None:
        """Watch until `stop`, or until there is nothing to watch any more."""
        with self._scope:
            while True:
                await anyio.sleep(self._seconds)
                sources = self._sources()
                if not sources:
                    return
                version = await self._look(sources[0])
                if self._looks.due(version, {source.loaded for source in self._sources()}):
                    await self._load(sources[0].path, version)

    def stop(self) -> None:
        """Begin no reload any more, and end one that goes on."""
        self._scope.cancel()

    async def _look(self, source: ModelSource) -> str | None:
        try:
            # In a thread: a network file system may block for as long as it likes.
            version = await anyio.to_thread.run_sync(source.version, abandon_on_cancel=True)
        except (OSError, ValueError) as error:  # the latter for a path that none can be
            if str(error) != self._trouble:  # said once, not at every look
                logger.warning("cannot look for newer models in %s: %s", source.path, error)
            self._trouble = str(error)
            return None
        self._trouble = ""
        return version

    async def _load(self, path: str, version: str | None) -> None:
        logger.info("loading version %s of the model in %s", version, path)
        try:
            await self._reload()
        except (WorkerStartError, ValueError) as error:
            self._looks.failed(version)
            logger.error(  # noqa: TRY400 - its text has the worker's traceback
                "version %s of the model in %s could not be loaded; the running one goes on, "
                "and this one is not tried again until it changes: %s",
                version,
                path,
                error,
            )
        except PoolClosed:
            return


def not_watchable(watch: float) -> ValueError:
    """Return the error for a predictor that names nothing to watch."""
    return ValueError(
        f"watch={watch:g}, but the predictor does not say where its model comes from (its "
        "`source` is None after load()): leave watch= out and call reload(). An "
        "EstimatorPredictor says it unless it has a checkpoint_path, or a model_dir that is no "
        "directory of this machine's file system; a KerasPredictor says it if it has a path"
    )
