"""Every timeout and retry policy of the workflows, named, each with its reason."""

from datetime import timedelta

from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityCancellationType, ActivityConfig

from models.errors import ErrorCode

_DOMAIN_ERRORS = [code.value for code in ErrorCode]

WORKFLOW_TASK = timedelta(seconds=5)
"""How long an environment stands still when the control worker is killed in the midst of its task; the server's default
is 10 s. A task takes milliseconds, the replay of a whole history a second; one cut off is found in the cache."""

HOST_HEARTBEAT = timedelta(seconds=6)
"""A host worker that was killed is noticed after this; four missed beats of a busy machine are not an outage."""

HOST_PICK_UP = timedelta(seconds=8)
"""How long an activity may wait for the host's worker: longer than a restart of the worker takes, and together with
the heartbeat below the 20 s in which a lost host has to be recorded (design section 7)."""

HOST_RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=200),
    maximum_interval=timedelta(seconds=2),
    maximum_attempts=3,
    non_retryable_error_types=_DOMAIN_ERRORS,
)
"""Repeats what a worker's shutdown or restart cut off. What failed for a reason of its own goes to the reconcile loop,
whose back-off operators can see."""

IMAGE = ActivityConfig(
    start_to_close_timeout=timedelta(minutes=30),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=HOST_PICK_UP,
    retry_policy=HOST_RETRY,
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)
"""A pull of some GB over a slow line takes minutes; giving it up needs no waiting, since it leaves nothing to undo."""

FILES = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=30),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=HOST_PICK_UP,
    retry_policy=HOST_RETRY,
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)
"""Small files on a local disk."""

FILES_AT_ONCE = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=30),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=timedelta(seconds=1),
    retry_policy=HOST_RETRY,
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)
"""The same, while nothing is shown yet of what it is for: a host that takes work up does so in milliseconds."""

CONTAINER = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=HOST_PICK_UP,
    retry_policy=HOST_RETRY,
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)
"""Docker makes or removes a container in well under a second, and in tens of seconds on a machine that swaps. A
cancelled start is not waited for: the host's fence keeps it from making anything after the removal that follows."""

PAIRING = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=100),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=HOST_PICK_UP,
    retry_policy=HOST_RETRY,
    cancellation_type=ActivityCancellationType.TRY_CANCEL,
)
"""Above the activity's own deadline of 60 s (the reference image waits that long for its token, protocol section 8.3),
so that its own, better error is the one seen."""

CLEAN_UP = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=HOST_PICK_UP,
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=500),
        maximum_interval=timedelta(seconds=2),
        maximum_attempts=3,
    ),
)
"""A removal is worth repeating whatever the error: it is idempotent, and an engine that restarts is back in seconds."""

CLEAN_UP_IN_DELETE = ActivityConfig(**CLEAN_UP, schedule_to_close_timeout=timedelta(seconds=20))
"""Somebody waits for the delete. What a hung container keeps up for longer goes on after the tombstone."""

CLEAN_UP_AT_LAST = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=60),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=10)),
)
"""After the tombstone there is no hurry and no giving up: it waits in the host's queue until the host is back
(design decision 11), then ends within one interval."""

LOGS = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    heartbeat_timeout=HOST_HEARTBEAT,
    schedule_to_start_timeout=timedelta(seconds=4),
    retry_policy=RetryPolicy(maximum_attempts=1),
)
"""Somebody waits in front of a terminal."""

MONITOR = ActivityConfig(
    start_to_close_timeout=timedelta(days=3650),
    heartbeat_timeout=HOST_HEARTBEAT,
    retry_policy=RetryPolicy(maximum_attempts=1),
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""Runs as long as the host's worker. One attempt, so that the workflow learns of every end at once; no limit on the
wait for a worker, because that wait is how a lost host is waited for."""

MONITOR_RETRY = timedelta(seconds=2)
"""A monitor that ends sooner than this ends of itself; beginning it again at once would spin."""

HOST_RETURN_GRACE = timedelta(seconds=6)
"""A worker that is back within this was restarted, not lost; with the heartbeat, 12 s of the 20 s budget."""

INVENTORY = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=10),
    schedule_to_close_timeout=timedelta(seconds=20),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=100),
        maximum_interval=timedelta(seconds=1),
        maximum_attempts=5,
    ),
    cancellation_type=ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
)
"""Short SQL writes. A cancelled one is waited for: a token registered after its own revocation would live. What still
fails is told apart by `calls.in_inventory`: a database that is away is waited for, a bug is not."""

INVENTORY_WAIT_MAX = timedelta(seconds=15)
"""The longest wait for a database that is away, by a durable timer; doubles up to it from one second."""

PROJECTION_WAIT_MAX = timedelta(minutes=5)
"""How often a record that the inventory refuses for a reason of its own, which is a bug, is offered again at least."""

NOTIFY = ActivityConfig(
    start_to_close_timeout=timedelta(seconds=30),
    retry_policy=RetryPolicy(
        initial_interval=timedelta(milliseconds=200),
        maximum_interval=timedelta(seconds=5),
        maximum_attempts=8,
    ),
)
"""One signal to each environment of a host: some hundreds take seconds. One environment that cannot be signalled must
not keep the host's workflow from its work for ever."""

NODE_TOKEN_TTL = timedelta(hours=24)
"""A node reads its token once, so the expiry moves, not the token."""

NODE_TOKEN_RENEWAL = timedelta(hours=12)
"""Half the TTL: a control plane may be down for as long as the other half."""

NODE_GRACE = timedelta(seconds=60)
"""A node reconnects with full jitter in [0, 5 s], then [0, 10 s], then [0, 20 s] (protocol section 1.4); a minute
covers three unlucky attempts."""

RESTART_WINDOW = timedelta(minutes=10)
RESTART_ATTEMPTS = 5
"""A desktop that died five times in ten minutes dies of itself; more restarts only hide it."""

RESTART_BACKOFF_FIRST = timedelta(milliseconds=250)
RESTART_BACKOFF_MAX = timedelta(seconds=60)
"""Doubles from the first: a single crash is over within 3 s (design section 7), a loop does not spin."""

HOST_RETRY_BACKOFF = timedelta(seconds=5)
"""How often a start is tried again while the host or its engine does not answer and nobody reported its return."""

HISTORY_LIMIT = 2000
"""Events after which a workflow continues as new even if the server does not suggest it yet: replays stay well below
the deadlock detector's 2 s."""

HISTORY_LIMIT_IN_OPERATION = 10_000
"""Events after which even an operation in flight is interrupted to continue as new: an image pulled for half an hour
under a steady storm of signals would otherwise meet the server's limit of 51,200."""

STATE_LIMIT = 1_000_000
"""Bytes of JSON beyond which a state is not continued as new now: the server takes 2 MB, and refuses for ever."""


def doubling(attempts: int, longest: timedelta) -> timedelta:
    """One second, doubled with each attempt (≥ 1), `longest` at most."""
    return min(longest, timedelta(seconds=2 ** max(0, min(attempts - 1, 16))))


def restart_backoff(attempts: int) -> timedelta:
    """The wait before the next start after `attempts` (≥ 1) failures in the window."""
    exponent = max(0, min(attempts - 1, 16))
    return min(RESTART_BACKOFF_MAX, RESTART_BACKOFF_FIRST * float(2**exponent))
