"""Breaks one mechanism after another and sees that the test which guards it fails.

``python -m tests.mutations [PART OF A NAME]`` makes each change in a copy of the source, runs
the named test there, and fails if that test passes. The table is in
docs/explanation/reliability.md; tests/test_mutations.py keeps it and this list alike.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
PATIENCE = 90  # seconds; what was broken may well hang


@dataclass(frozen=True)
class Mutation:
    """A mechanism, how it is broken, and the test that notices.

    Attributes:
        mechanism: what is switched off.
        module: the file in ``src/predictpool``.
        before, after: the text that is replaced; it occurs once.
        test: the file in ``tests`` and the test's name.
    """

    mechanism: str
    module: str
    before: str
    after: str
    test: str

    @property
    def node(self) -> str:
        """What pytest calls the test."""
        file, _, name = self.test.partition("::")
        return f"tests/{file}.py::{name}"


MUTATIONS = [
    # --- deaths
    Mutation(
        "end of file on a worker's socket is its end",
        "_channel.py",
        'if count == 0:\n                self._end("")',
        "if count == 0:\n                self.close()",
        "test_faults::test_a_worker_that_closes_its_socket_and_lives_on_is_killed_and_replaced",
    ),
    Mutation(
        "a worker's end is seen by its pidfd, too",
        "_local_worker.py",
        "self._listener.ending()\n        self._channel.drain()\n        self._end()",
        "return",
        "test_faults::test_the_death_of_a_worker_whose_child_keeps_its_socket_open_is_noticed",
    ),
    Mutation(
        "what a worker sent before it died counts",
        "_local_worker.py",
        "self._channel.drain()\n        self._end()",
        "self._end()",
        "test_faults::test_an_answer_that_was_sent_before_the_death_counts",
    ),
    Mutation(
        "requests of a dead worker run again",
        "_scheduler.py",
        "if request.deaths > self._retries]",
        "if request.deaths]",
        "test_faults::test_a_request_whose_worker_dies_once_is_answered_by_the_next",
    ),
    Mutation(
        "… each of them alone",
        "_scheduler.py",
        "self._run_again([[request] for request in live if request.state is State.RUNNING])",
        "self._run_again([[r for r in live if r.state is State.RUNNING]])",
        "test_faults::test_a_request_that_kills_every_worker_fails_alone_and_says_how",
    ),
    Mutation(
        "… at most `retries` times",
        "_scheduler.py",
        "request.deaths += 1",
        "request.deaths += 0",
        "test_faults::test_retries_0_runs_nothing_twice",
    ),
    Mutation(
        "the slot of a dead worker is filled again",
        "_supervisor.py",
        "if not self._closing:\n                await self._back_off(slot)",
        "return",
        "test_faults::test_an_idle_worker_that_is_killed_is_replaced_and_nobody_notices",
    ),
    Mutation(
        "an answer resets the count of failures",
        "_slot.py",
        "self._slot.backoff.reset()\n        self._slot.dispatcher.answered",
        "self._slot.dispatcher.answered",
        "test_faults::test_an_answer_resets_the_count_of_failures",
    ),
    Mutation(
        "a slot that keeps failing is given up",
        "_slot.py",
        "if self.failures >= self._tries:",
        "if self.failures < 0:",
        "test_faults::test_a_slot_that_keeps_failing_is_given_up_and_the_others_go_on",
    ),
    Mutation(
        "a pool without slots tells every caller",
        "_supervisor.py",
        "if not self.filling:\n            self._dispatcher.fail_all(self._no_worker_error)",
        "return",
        "test_faults::test_a_pool_without_slots_tells_every_caller_at_once",
    ),
    Mutation(
        "… and a reload brings it back",
        "_dispatcher.py",
        "self._broken = None\n        if isinstance",
        "if isinstance",
        "test_reload::test_a_pool_without_slots_is_brought_back_by_a_reload",
    ),
    Mutation(
        "a template that died is replaced",
        "_local_launcher.py",
        "if not self._templates or self._templates[-1].gone:\n",
        "if not self._templates:\n",
        "test_faults::test_a_template_killed_while_it_starts_a_worker_is_replaced",
    ),
    Mutation(
        "… and one that does not answer, too",
        "_local_launcher.py",
        "with anyio.move_on_after(_ORDER_WAIT):",
        "with anyio.CancelScope():",
        "test_faults::test_a_template_that_was_stopped_is_replaced_at_the_next_start",
    ),
    Mutation(
        "a kill for lack of memory is named as such",
        "_local_worker.py",
        "else now > before",
        "else False",
        "test_out_of_memory::test_the_kernels_count_tells_which_kill_it_was",
    ),
    Mutation(
        "a worker may die at any byte of a request or a reply",
        "_channel.py",
        "except OSError:  # a reset: it ended with something of ours unread\n",
        "except ProcessLookupError:\n",
        "test_cut_frames::test_a_worker_that_dies_at_any_byte_of_a_frame_harms_nobody",
    ),
    Mutation(
        "a worker that talks nonsense is replaced",
        "_local_worker.py",
        "elif frame.kind is Kind.FAILURE and isinstance(message, Failure):",
        "elif frame.kind is Kind.FAILURE:",
        "test_channel::test_a_worker_that_talks_nonsense_is_replaced_and_its_request_answered",
    ),
    # --- hangs and deadlines
    Mutation(
        "a batch that runs longer than `hang_timeout` costs its worker its life",
        "_scheduler.py",
        "todo.kill.append(",
        "str(",
        "test_faults::test_a_hung_worker_is_killed_and_only_the_guilty_request_is_told",
    ),
    Mutation(
        "deadlines go on in the queue",
        "_scheduler.py",
        "while self._deadlines and self._deadlines[0][0] <= now:",
        "while False:",
        "test_requests::test_a_deadline_passes_in_the_queue_while_every_worker_is_busy",
    ),
    Mutation(
        "… and a timer tells of them",
        "_dispatcher.py",
        "if at < self._timer_at:",
        "if at < -1:",
        "test_requests::test_a_deadline_passes_while_the_request_runs_and_the_worker_lives_on",
    ),
    Mutation(
        "deadlines are of a clock that nobody can set",
        "_dispatcher.py",
        "clock: Callable[[], float] = time.monotonic",
        "clock: Callable[[], float] = lambda: time.time()",
        "test_deadlines::test_a_clock_that_is_set_while_requests_run_changes_no_deadline",
    ),
    # --- overload
    Mutation(
        "workers do not interrupt the event loop",
        "_template.py",
        "    _give_way()\n",
        "",
        "test_workers::test_workers_do_not_interrupt_the_event_loop",
    ),
    Mutation(
        "what comes in one turn of the loop shares a batch",
        "_dispatcher.py",
        "if scheduler.lonely:",
        "if True:",
        "test_requests::test_requests_of_one_turn_are_shared_by_the_workers_that_are_idle",
    ),
    Mutation(
        "… callers that come back together, too",
        "_dispatcher.py",
        "if waiting > 1 or self._scheduler.due:",
        "if self._answers:",
        "test_requests::test_callers_that_are_answered_together_share_the_next_batch",
    ),
    Mutation(
        "… evenly among the workers that are idle",
        "_scheduler.py",
        "workers = max(1, len(self._idle) - (len(self._lines) - 1))",
        "workers = 1",
        "test_requests::test_requests_of_one_turn_are_shared_by_the_workers_that_are_idle",
    ),
    Mutation(
        "callers are woken a few in each turn of the loop",
        "_dispatcher.py",
        "count = min(waiting, max(_AT_ONCE, waiting // 2))",
        "count = waiting",
        "test_requests::test_the_callers_of_a_large_batch_are_not_woken_all_in_one_turn",
    ),
    Mutation(
        "… and all of them",
        "_dispatcher.py",
        "if self._answers:\n            self._wake_some()\n        else:",
        "if True:",
        "test_requests::test_the_callers_of_a_large_batch_are_not_woken_all_in_one_turn",
    ),
    Mutation(
        "… and soon, however many there are",
        "_dispatcher.py",
        "max(_AT_ONCE, waiting // 2)",
        "_AT_ONCE",
        "test_dispatcher::test_no_caller_waits_long_for_being_woken",
    ),
    Mutation(
        "a worker waits for callers that are being woken",
        "_dispatcher.py",
        "if not self._turns_left or self._scheduler.filled:",
        "if True:",
        "test_dispatcher::test_a_worker_waits_for_callers_that_are_being_woken",
    ),
    Mutation(
        "… but not where its batch is full",
        "_scheduler.py",
        "return rows >= self._max_batch_size * len(self._idle)",
        "return False and rows >= self._max_batch_size * len(self._idle)",
        "test_dispatcher::test_a_full_batch_is_sent_while_callers_are_being_woken",
    ),
    Mutation(
        "… nor for ever",
        "_dispatcher.py",
        "or self._turns >= _MOST_TURNS",
        "",
        "test_dispatcher::test_a_worker_does_not_wait_for_ever",
    ),
    Mutation(
        "a batch is held for `batch_timeout`",
        "_scheduler.py",
        "line.rows >= most or self._until(line) <= now",
        "True",
        "test_options::test_batch_timeout_holds_a_batch_until_it_is_full",
    ),
    Mutation(
        "… and no longer",
        "_scheduler.py",
        "if self._batch_timeout and self._idle:",
        "if False:",
        "test_options::test_batch_timeout_ends_for_a_batch_that_does_not_fill",
    ),
    Mutation(
        "… also for what is held when its worker comes free",
        "_dispatcher.py",
        "if self._scheduler.holds or any(",
        "if any(",
        "test_options::test_batch_timeout_ends_for_what_is_held_when_its_worker_comes_free",
    ),
    Mutation(
        "a closing pool holds nothing",
        "_dispatcher.py",
        "self._carry_out(self._scheduler.release(self._clock()))",
        "pass",
        "test_options::test_a_closing_pool_holds_nothing_any_more",
    ),
    Mutation(
        "the limit of `max_waiting` is exact",
        "_dispatcher.py",
        "return not scheduler.full or scheduler.idle",
        "return scheduler.waiting <= scheduler.max_waiting or scheduler.idle",
        "test_requests::test_one_request_more_than_max_waiting_is_refused_at_once",
    ),
    Mutation(
        "a worker that comes free takes the oldest requests, whichever it is",
        "_scheduler.py",
        "while self._idle and self.waiting:",
        "while len(self._idle) > 1 and self.waiting:",
        "test_requests::test_quick_requests_never_wait_behind_a_slow_one",
    ),
    # --- cancellation and errors
    Mutation(
        "a cancelled caller's request is forgotten",
        "_pool.py",
        "except BaseException:\n            self._forget(call)\n            raise",
        "except BaseException:\n            raise",
        "test_requests::test_cancelling_returns_at_once_waiting_and_running",
    ),
    Mutation(
        "the answers of a batch skip callers that have gone",
        "_dispatcher.py",
        "            start = stop\n",
        "                start = stop\n",
        "test_requests::test_cancelling_members_of_a_batch_leaves_the_others_alone",
    ),
    Mutation(
        "a batch that the model refuses is halved",
        "_scheduler.py",
        "if len(batch.requests) == 1:\n            self._fail(live, error, todo)",
        "if batch.requests:\n            self._fail(live, error, todo)",
        "test_requests::test_a_poisoned_row_fails_alone_and_its_mates_are_answered",
    ),
    Mutation(
        "an answer that nobody waits for is no one's",
        "_scheduler.py",
        "if batch is None or batch.id != batch_id:",
        "if batch is None:",
        "test_scheduler::test_the_late_answer_of_a_replaced_worker_is_ignored",
    ),
    Mutation(
        "what is unpickled from a worker imports nothing",
        "_wire.py",
        "if module_name not in sys.modules:",
        "if not module_name:",
        "test_requests::test_an_exception_of_a_module_that_is_not_imported_here_does_not_import_it",
    ),
    Mutation(
        "a frame of impossible size is refused before memory is taken",
        "_wire.py",
        "if schema > MAX_SCHEMA or payload > MAX_PAYLOAD:",
        "if schema < 0:",
        "test_wire::test_what_cannot_be_a_frame_is_refused_before_memory_is_taken",
    ),
    Mutation(
        "outputs that cannot be divided are nobody's",
        "_worker.py",
        "if frame.joined and (encoded is None or not encoded[0].divisible):",
        "if frame.joined and encoded is None:",
        "test_messages::test_outputs_of_the_wrong_length_never_reach_a_mate",
    ),
    # --- reload
    Mutation(
        "a reload waits for what the old worker runs",
        "_supervisor.py",
        "await self._dispatcher.retire(slot.number)\n                self._check_still_wanted",
        "self._check_still_wanted",
        "test_reload::test_what_runs_in_the_old_worker_is_answered_by_it_and_what_waits_by_the_new",
    ),
    Mutation(
        "a new model that fails leaves the old one serving",
        "_supervisor.py",
        "self._dispatcher.unretire(slot.number)\n                await worker.kill",
        "await worker.kill",
        "test_reload::"
        "test_a_new_worker_that_dies_before_its_first_request_is_an_error_and_the_old_goes_on",
    ),
    Mutation(
        "requests are joined again for the row-wise model of a reload",
        "_scheduler.py",
        "        self._alone.discard(slot)\n",
        "",
        "test_reload::test_requests_are_joined_again_after_a_reload_to_a_row_wise_model",
    ),
    Mutation(
        "… and not any more for one that is not row-wise",
        "_scheduler.py",
        "self._take(self._idle[-1] in self._alone, now if hold else math.inf)",
        "self._take(False, now if hold else math.inf)",
        "test_reload::test_what_waits_is_not_joined_for_a_new_model_that_is_not_row_wise",
    ),
    Mutation(
        "what was learnt of a model is kept over restarts",
        "_dispatcher.py",
        "ready.row_wise and model not in self._broke_rows",
        "ready.row_wise",
        "test_reload::test_what_was_learnt_of_a_model_is_kept_over_restarts_and_forgotten_with_it",
    ),
    # --- watch
    Mutation(
        "a version is loaded when it was there unchanged at two looks",
        "_watch.py",
        "settled = version is not None and version == self._seen",
        "settled = version is not None",
        "test_watch::test_a_version_is_due_once_it_was_there_unchanged_at_two_looks",
    ),
    Mutation(
        "a checkpoint that lacks a file is never taken",
        "predictors/_source.py",
        "for n in range(int(shard[2]))]",
        "for n in range(1)]",
        "test_watch::test_a_half_written_checkpoint_is_never_taken",
    ),
    Mutation(
        "a version that failed is not tried again",
        "_watch.py",
        "self._looks.failed(version)",
        "pass",
        "test_watch::test_a_version_that_fails_is_logged_and_not_tried_again_until_it_changes",
    ),
    Mutation(
        "looking for a newer version does not block the event loop",
        "_watch.py",
        "await anyio.to_thread.run_sync(source.version, abandon_on_cancel=True)",
        "source.version()",
        "test_watch::test_a_newer_version_is_loaded_without_a_call_under_64_callers",
    ),
    Mutation(
        "closing ends a reload that the pool makes by itself",
        "_pool.py",
        "self._supervisor.stop_watching()\n",
        "pass\n",
        "test_watch::test_closing_ends_a_watched_reload_in_good_order",
    ),
    # --- resize
    Mutation(
        "a pool that becomes smaller waits for what its workers run",
        "_supervisor.py",
        "await self._dispatcher.retire(slot.number)\n                # Nothing",
        "# Nothing",
        "test_resize::test_the_highest_slots_finish_what_they_run_and_get_nothing_more",
    ),
    Mutation(
        "a slot that is being filled is not awaited when it is too many",
        "_supervisor.py",
        "slot.keeping.cancel()",
        "pass",
        "test_resize::test_a_slot_that_is_being_filled_is_done_away_with_all_the_same",
    ),
    Mutation(
        "slots that were given up go first",
        "_supervisor.py",
        "key=lambda slot: slot.state is SlotState.GIVEN_UP",
        "key=lambda slot: slot.number",
        "test_resize::test_slots_that_were_given_up_go_first_and_are_free_for_others",
    ),
    Mutation(
        "new slots are kept filled as the others are",
        "_supervisor.py",
        "self._let_serve(slot, worker, ready)\n        self._keep(slot)",
        "self._let_serve(slot, worker, ready)",
        "test_resize::test_new_workers_are_given_requests_that_wait_and_are_kept_filled",
    ),
    Mutation(
        "reloads and resizes are made one after the other",
        "_supervisor.py",
        "self._changing = anyio.Lock()",
        "self._changing = anyio.Semaphore(9)",
        "test_resize::test_changes_at_once_are_made_one_after_the_other",
    ),
    # --- devices
    Mutation(
        "a CPU worker sees no GPU",
        "_local_launcher.py",
        '"CUDA_VISIBLE_DEVICES": device.gpu}',
        '"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "")}',
        "test_placement::test_workers_of_gpus_see_one_each_and_cpu_workers_none_whatever_the_"
        "application_sees",
    ),
    Mutation(
        "a worker with several threads is not forked",
        "_local_launcher.py",
        'return "" if device.threads == 1 else',
        'return "" if True else',
        "test_placement::test_a_worker_on_several_cores_is_started_afresh_with_as_many_threads",
    ),
    Mutation(
        "… and where none is forked the template imports nothing",
        "_local_launcher.py",
        'self._forks = any(self._why_afresh(device) == "" for device in devices)',
        "self._forks = True",
        "test_placement::test_what_no_worker_is_forked_for_is_not_imported_by_the_template",
    ),
    Mutation(
        "a forked worker has its environment before it loads",
        "_template.py",
        'os.environ.update(order["env"])',
        "pass",
        "test_placement::test_a_worker_on_one_core_is_pinned_to_it_and_has_one_thread_of_each_"
        "library",
    ),
    Mutation(
        "a template that has opened a GPU does not fork",
        "_template.py",
        "if _holds_gpu():",
        "if False:",
        "test_placement::test_a_template_that_has_opened_a_gpu_does_not_fork",
    ),
    Mutation(
        "a GPU that is not there is an error before the first process",
        "_devices.py",
        "if isinstance(wish.gpu, int) and wish.gpu < len(gpus):",
        "if isinstance(wish.gpu, int):",
        "test_placement::test_an_impossible_plan_is_an_error_before_the_first_process",
    ),
    Mutation(
        "… and so are cores that are not ours",
        "_devices.py",
        "if not set(wish.cores) <= set(machine.cores):",
        "if False:",
        "test_placement::test_an_impossible_plan_is_an_error_before_the_first_process",
    ),
    Mutation(
        "what the application's CUDA_VISIBLE_DEVICES hides stays hidden",
        "_gpus.py",
        "    if setting is None:\n",
        "    if True:\n",
        "test_gpus::test_the_setting_of_the_application_is_respected",
    ),
    Mutation(
        "a pool that is closed while it looks for GPUs starts nothing",
        "_pool.py",
        "if self._phase is _Phase.CLOSED:\n            raise PoolClosed(",
        "if False:\n            raise PoolClosed(",
        "test_placement::test_a_pool_that_is_closed_while_it_looks_for_gpus_starts_nothing",
    ),
    # --- endings
    Mutation(
        "closing waits for the requests",
        "_pool.py",
        "await self._dispatcher.drained()",
        "await anyio.lowlevel.checkpoint()",
        "test_pool::test_closing_lets_requests_finish_and_refuses_new_ones",
    ),
    Mutation(
        "… no longer than `grace_period`",
        "_pool.py",
        "with anyio.CancelScope(deadline=deadline):",
        "with anyio.CancelScope():",
        "test_pool::test_after_the_grace_period_waiters_get_pool_closed_and_workers_are_killed",
    ),
    Mutation(
        "a cancelled `aclose` leaves nothing running",
        "_pool.py",
        "self._supervisor.stop_filling()\n",
        "pass\n",
        "test_ending::test_an_aclose_cancelled_while_a_slot_is_in_trouble_leaves_nothing_running",
    ),
    Mutation(
        "… and no zombie",
        "_local_launcher.py",
        "finally:\n            self._reap(patience)",
        "finally:\n            pass",
        "test_ending::"
        "test_an_aclose_cancelled_at_any_step_ends_all_processes_and_tells_every_caller",
    ),
    Mutation(
        "nothing that a worker does keeps it alive",
        "_local_worker.py",
        "signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)",
        "signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)",
        "test_ending::test_no_resistance_of_a_worker_keeps_it_alive_when_the_pool_closes",
    ),
    Mutation(
        "workers are asked to close their predictors",
        "_supervisor.py",
        "for worker in serving:\n            worker.stop()",
        "for worker in serving:\n            worker.handle.kill('x')",
        "test_pool::test_closing_lets_the_predictor_close",
    ),
    Mutation(
        "a pool that nobody holds ends its processes",
        "_pool.py",
        "self._supervisor.kill(_closed_error)\n\n    # --- inside",
        "pass\n\n    # --- inside",
        "test_orphans::test_a_pool_that_nobody_holds_warns_and_ends_its_processes",
    ),
    Mutation(
        "the lifeline: the kernel kills template and workers with the application",
        "_template.py",
        "fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)",
        "fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGINT)",
        "test_orphans::test_no_process_is_left_one_second_after_a_kill_of_the_application",
    ),
    Mutation(
        "… and no forked copy of the application keeps it open",
        "_local_launcher.py",
        "template.close_in_forked_copy()",
        "pass",
        "test_orphans::test_no_process_is_left_one_second_after_a_kill_of_the_application",
    ),
    # --- Estimators
    Mutation(
        "the generator waits for a request",
        "predictors/_estimator_models.py",
        "while (fed := self._requests.get()) is not _END:\n            yield fed",
        "fed = self._requests.get()\n        while fed is not _END:\n            yield fed\n"
        "            fed = fed if self._requests.empty() else self._requests.get()",
        "test_transform::test_no_answer_is_stale",
    ),
    Mutation(
        "… and TensorFlow, which ends by itself after an error, can end it",
        "predictors/_estimator_models.py",
        "coord.wait_for_stop()\n                requests.put(_END)",
        "coord.wait_for_stop()",
        "test_estimator::test_only_the_guilty_request_fails",
    ),
    Mutation(
        "… and holds a thread of tf.data that nothing else needs",
        "predictors/_estimator_inputs.py",
        "max(2, wanted or len(available_cores()) + 1)",
        "wanted or 0",
        "test_transform::test_a_map_never_waits_for_the_generator",
    ),
    Mutation(
        "a transform is tried before it serves",
        "predictors/_estimator.py",
        "            inputs.probe(features)\n",
        "",
        "test_transform::test_a_wrong_transform_is_an_error_at_the_start",
    ),
    Mutation(
        "TensorFlow has as many threads as its worker has cores",
        "predictors/_estimator.py",
        "        _limit_threads(estimator, device.threads)\n",
        "",
        "test_estimator::test_a_session_config_is_respected_but_for_its_threads",
    ),
    Mutation(
        "an estimator without a checkpoint is refused",
        "predictors/_estimator.py",
        "    if newest is None:\n",
        "    if newest == 0:\n",
        "test_estimator::test_an_untrained_model_is_an_error",
    ),
    # --- SavedModels
    Mutation(
        "a SavedModel runs where all that it needs has been restored",
        "predictors/_saved_model.py",
        "if session.holds(signature):",
        "if True:",
        "test_saved_model::test_each_caller_gets_its_own_answer_both_ways",
    ),
    Mutation(
        "a SavedModel has as many threads as its worker has cores",
        "predictors/_saved_model_models.py",
        "            inter_op_parallelism_threads=threads,\n",
        "",
        "test_saved_model::test_tensorflow_has_as_many_threads_as_the_device_says",
    ),
    Mutation(
        "the newest version of a SavedModel is the one of the highest number",
        "predictors/_versions.py",
        "key=lambda entry: int(entry.name)",
        "key=lambda entry: entry.name",
        "test_saved_model::test_each_reload_takes_the_newest_version_that_is_whole",
    ),
    Mutation(
        "… and one that is still being written is not taken",
        "predictors/_versions.py",
        "if lacks(version) is None:",
        "if True:",
        "test_saved_model::test_each_reload_takes_the_newest_version_that_is_whole",
    ),
    Mutation(
        "… which files that are there in part show, too",
        "predictors/_versions.py",
        "(folder / name).stat().st_size < size",
        "False",
        "test_saved_model::test_a_version_that_lacks_a_file_or_the_end_of_one_is_not_whole",
    ),
    Mutation(
        "NaN does not reach a model that did not ask for it",
        "_features/_encoder.py",
        "if parts is None or self._has_nan(features, shape[0]):",
        "if parts is None:",
        "test_estimator::test_bad_features_are_refused_and_the_same_session_answers_the_next",
    ),
    Mutation(
        "outputs that depend on the other rows are found in the warm-up",
        "_worker.py",
        "more is not None and all(map(_begins_with, more, first))",
        "more is not None",
        "test_requests::test_outputs_that_depend_on_other_rows_are_found_in_a_warm_up_of_several",
    ),
    # --- Keras models
    Mutation(
        "a Keras model is asked in inference mode",
        "predictors/_keras.py",
        "model(argument(tensors), training=False)",
        "model(argument(tensors), training=True)",
        "test_keras::test_inputs_and_answers_are_those_of_the_model",
    ),
    Mutation(
        "a Keras model has as many threads as its worker has cores",
        "predictors/_keras.py",
        "        limit_threads(device)\n",
        "",
        "test_keras::test_the_model_has_as_many_threads_as_its_device",
    ),
    Mutation(
        "a Keras model that keeps a state is refused",
        "predictors/_keras.py",
        'getattr(layer, "stateful", False)',
        "False",
        "test_keras::test_what_cannot_be_loaded_says_why_and_what_to_do",
    ),
    Mutation(
        "an export is put in its place only if it agrees with the Estimator",
        "_export.py",
        "if not agree(given, values):",
        "if False:",
        "test_export::test_a_difference_is_named",
    ),
    Mutation(
        "a model that calls Python is not exported",
        "predictors/_estimator_export.py",
        "        _require_no_python(graph)\n",
        "",
        "test_export::test_a_model_that_calls_python",
    ),
    # --- large arrays
    Mutation(
        "a place in the shared buffer is taken until its batch was answered",
        "_shared_buffer.py",
        "self._taken[batch_id] = offset, offset + size",
        "self._taken[batch_id] = 0, 0",
        "test_large::test_whatever_is_under_way_each_batch_is_read_as_it_was_written",
    ),
    Mutation(
        "… and then free again",
        "_local_worker.py",
        "            self._buffer.release(frame.id)\n            self._listener.answered(frame)",
        "            self._listener.answered(frame)",
        "test_large::test_a_caller_that_goes_while_its_request_is_copied_harms_nobody",
    ),
    Mutation(
        "a large payload is copied a step at a time",
        "_shared_buffer.py",
        "end = offset + min(self._left, STEP_BYTES)",
        "end = offset + self._left",
        "test_large::test_the_loop_turns_between_two_steps_of_a_copy",
    ),
    Mutation(
        "… and what is sent behind it waits",
        "_channel.py",
        "if self._waiting or callable(frame):",
        "if callable(frame):",
        "test_large::test_what_is_sent_behind_a_copy_comes_behind_it",
    ),
    Mutation(
        "… and is sent where there is no memory to share",
        "_shared_buffer.py",
        "            self.offset = None\n            return True\n        return not self._left",
        "            return True\n        return not self._left",
        "test_large::test_without_memory_to_share_large_arrays_are_sent_and_the_log_says_so",
    ),
    Mutation(
        "a worker maps the memory again when it has grown",
        "_worker.py",
        "if offset + size > len(self._view):",
        "if not len(self._view):",
        "test_large::test_sizes_in_any_order_grow_the_buffer_and_come_back",
    ),
    Mutation(
        "memory that nothing uses any more is given back",
        "_shared_buffer.py",
        "            self._mapping.madvise(mmap.MADV_REMOVE, keep, self._size - keep)\n",
        "",
        "test_large::test_memory_that_nothing_uses_any_more_is_given_back",
    ),
    Mutation(
        "features cannot be written to, whatever their size",
        "_worker.py",
        "frame.payload.toreadonly()",
        "frame.payload",
        "test_large::test_features_of_any_size_cannot_be_written_to",
    ),
    # --- hooks
    Mutation(
        "a hook that raises breaks no request",
        "_hooks.py",
        "except Exception:",
        "except KeyError:",
        "test_hooks::test_a_hook_that_raises_breaks_nothing_and_is_logged_once_for_each_method",
    ),
    Mutation(
        "hooks are told how a request ended",
        "_dispatcher.py",
        '"timed_out" if request.expired else "failed"',
        '"failed"',
        "test_hooks::test_every_outcome_is_told_once",
    ),
    Mutation(
        "a worker that ends with its pool is not told as lost",
        "_slot.py",
        "or end.goodbye or dispatcher.broken",
        "",
        "test_hooks::test_workers_that_end_with_their_pool_or_are_replaced_are_not_lost",
    ),
    Mutation(
        "what hooks hold does not keep a pool alive",
        "_pool.py",
        "reference = weakref.ref(pool)\n\n    def statistics",
        "reference = lambda: pool\n\n    def statistics",
        "test_hooks::test_statistics_are_those_of_the_pool_and_do_not_keep_it",
    ),
    # --- mixed pools
    Mutation(
        "a request waits for a busy worker that will answer it sooner than an idle one",
        "_routing.py",
        "places.append(_Place(slot, 0 if slot in alone else most, begins, idle=False))",
        "pass",
        "test_routing::test_a_request_waits_for_a_busy_worker_that_answers_it_sooner_than_an_idle_one",
    ),
    Mutation(
        "… not for one that takes longer than expected",
        "_routing.py",
        "if expected is not None and now < expected.until:",
        "if expected is not None:",
        "test_routing::test_a_request_is_not_held_for_a_worker_that_takes_longer_than_expected",
    ),
    Mutation(
        "… nor for one that gets what it was never asked",
        "_routing.py",
        "place.begins = math.inf",
        "pass",
        "test_routing::test_nothing_waits_for_a_worker_that_gets_what_it_was_never_asked",
    ),
    Mutation(
        "… nor for one that is to be replaced",
        "_scheduler.py",
        "return self._dispatch(now, Todo())  # what waits for it",
        "return Todo()",
        "test_routing::test_what_waits_for_a_worker_that_is_to_be_replaced_goes_to_another_at_once",
    ),
    Mutation(
        "… of which a timer tells",
        "_scheduler.py",
        "or self._counts_until < math.inf",
        "",
        "test_mixed_pools::test_what_waits_for_a_worker_that_takes_longer_goes_to_the_other",
    ),
    Mutation(
        "a worker that was passed over for long is tried again",
        "_routing.py",
        "self._try_passed_over(requests, known, before)",
        "pass",
        "test_routing::test_a_worker_that_looked_slow_once_is_tried_again_and_that_costs_little",
    ),
    Mutation(
        "… for a bounded price",
        "_routing.py",
        "0 < end - sooner <= _PRICE * self._served",
        "0 < end - sooner",
        "test_routing::test_a_worker_that_looked_slow_once_is_tried_again_and_that_costs_little",
    ),
    Mutation(
        "noise of small batches does not change the price of large ones",
        "_costs.py",
        "self._forget(rows, _DRIFT * expected)",
        "self._drift(_DRIFT, _SHIFT)",
        "test_routing::test_noise_of_small_batches_does_not_change_what_is_known_of_large_ones",
    ),
    Mutation(
        "a cold start is not taken for what batches cost",
        "_costs.py",
        "known.curves[slot] = None",
        "known.curves[slot] = _learnt(None, rows, seconds)",
        "test_routing::test_a_cold_start_is_not_taken_for_what_batches_cost",
    ),
    Mutation(
        "another model's costs are learnt anew",
        "_routing.py",
        "self._costs.forget(slot)",
        "pass",
        "test_routing::test_what_was_learnt_outlives_a_worker_but_not_its_model",
    ),
    # --- a good guest
    Mutation(
        "signals of the terminal do not end workers",
        "_template.py",
        "signal.signal(number, _leave_it_to_the_application)",
        "pass",
        "test_guest::test_signals_of_the_terminal_do_not_end_workers",
    ),
    Mutation(
        "use from another loop or thread is an error at once",
        "_pool.py",
        "if self._backend is not None and not self._backend.is_current():",
        "if self._backend is None:",
        "test_pool::test_use_from_another_thread_or_loop_is_an_error_at_once",
    ),
    Mutation(
        "the event loop forgets the descriptors of a dead worker",
        "_backend.py",
        "self._remove(descriptor)",
        "pass",
        "test_guest::test_a_dead_workers_descriptor_numbers_may_be_used_by_the_application_at_once",
    ),
    Mutation(
        "a dead worker leaves no file descriptor",
        "_local_worker.py",
        "os.close(self._report)\n",
        "pass\n",
        "test_guest::test_a_hundred_restarts_leave_nothing",
    ),
    # --- Ray
    Mutation(
        "the death of an actor is told",
        "_ray_launcher.py",
        'self._end(End(None, None, "", False, "", told=_words(error)))',
        "self._let_go()",
        "test_ray::test_no_request_is_lost_when_a_node_is_killed_under_load",
    ),
    Mutation(
        "actors end with their pool",
        "_ray_launcher.py",
        "self.on_gone()\n        _kill(self._actor)",
        "self.on_gone()",
        "test_ray::test_actors_end_with_their_pool_and_with_the_program_that_had_them",
    ),
]


def table() -> str:
    """Return the rows of the table in the documentation."""
    return "\n".join(
        f"| {m.mechanism} | `{m.module.removesuffix('.py')}` | `{m.test}` |" for m in MUTATIONS
    )


def mutated(mutation: Mutation, folder: Path) -> Path:
    """Copy the source into a folder, change it there, and return where it is."""
    copy = folder / "src"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    module = copy / "predictpool" / mutation.module
    module.write_text(module.read_text().replace(mutation.before, mutation.after))
    return copy


def notices(mutation: Mutation) -> bool:
    """Return whether the test fails with the change, or does not end."""
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.Popen(
            [
                *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
                mutation.node,
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(mutated(mutation, Path(folder)))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = run.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return True
    if run.returncode not in (0, 1):
        raise SystemExit(f"pytest could not run {mutation.node}:\n{said}")
    return run.returncode == 1


def main() -> None:
    """Make every change, or those whose mechanism has the given words."""
    wanted = [m for m in MUTATIONS if all(word in m.mechanism for word in sys.argv[1:])]
    missed = []
    for mutation in wanted:
        noticed = notices(mutation)
        print(f"{'noticed' if noticed else 'MISSED'}: {mutation.mechanism}", flush=True)
        if not noticed:
            missed.append(mutation)
    print(f"{len(wanted) - len(missed)} of {len(wanted)} noticed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
