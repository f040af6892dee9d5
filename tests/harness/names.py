"""Names that the proxy gives to its metrics, in one place: a rename changes one line here."""

REQUESTS = "ringgate_requests_total"  # listener, upstream, server, status ("2xx" …)
DURATION = "ringgate_request_duration_seconds"  # histogram
CONNECTIONS = "ringgate_connections"  # open client connections, shard
ACCEPTED = "ringgate_connections_accepted_total"
REFUSED = "ringgate_connections_refused_total"  # max_connections or EMFILE
POOL_REUSED = "ringgate_upstream_connections_reused_total"
POOL_OPENED = "ringgate_upstream_connections_opened_total"
RETRIES = "ringgate_upstream_retries_total"
SERVER_FAILURES = "ringgate_upstream_failures_total"  # upstream, server
LOG_DROPPED = "ringgate_access_log_dropped_total"
REJECTED = "ringgate_rejected_requests_total"  # reason
