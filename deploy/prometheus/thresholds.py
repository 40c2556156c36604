"""Every number of the rules, each with the reason to change it. After a change: python -m deploy.prometheus.render."""

# Twelve scrapes. Longer hides what is over in seconds; shorter has too few observations for a 95th percentile
WINDOW = "1m"
# A window for what happens a few times an hour
LONG_WINDOW = "5m"
# The robot counts requests that fail for this long before somebody is told. Raise it for a link that drops now and then
PATIENCE = "1m"
# For what was counted over a window already
AT_ONCE = "0s"

# The queue has run out and two more scrapes agree. Raise it if your robot may stand for a while without harm
STALLED_FOR = "10s"
# A tunnel that comes back by itself takes a few seconds. Raise it on a network that is often away for longer
TUNNEL_DOWN_FOR = "30s"
# A restart of the edge or of the service takes less. Raise it if loading your policy takes longer
METRICS_MISSING_FOR = "2m"

# A third of a period at 30 fps: the arm stutters. Lower it for a faster loop. Must be a bound of the edge's histogram
LATE_TICK_SECONDS = 0.01
# One tick in a hundred, about one in three seconds. A laptop that does nothing else has none
LATE_TICK_RATIO = 0.01
# Only colours a number: RobotStalled tells of what lasts, LatencyLeavesNoMargin of why
IDLE_TICK_RATIO = 0.01

# What the planner itself goes by. Change both or neither
LATENCY_QUANTILE = 0.95
# Of what the queue lasts after a merge. At 0.5 there is time for one more such reply; at 1 the robot stands.
# Raise it for a policy with short chunks on a link without jitter
LATENCY_RATIO = 0.7

# One observation in five. A single failure is invisible to the robot; one in five says that something stays wrong
UNANSWERED_RATIO = 0.2

# Faults of the service in LONG_WINDOW. One may be chance; raise it for a policy that is known to return NaN at times
SERVICE_FAULTS = 3

# Of the memory that torch holds at its peak: what is left is too little for the buffers of one more policy
GPU_MEMORY_RATIO = 0.95
