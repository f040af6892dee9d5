"""Names that the proxy gives to its metrics, in one place: a rename changes one line here."""

REQUESTS = "ringgate_requests_total"  # listener, class ("2xx" …)
UPSTREAM_REQUESTS = "ringgate_upstream_requests_total"  # upstream, class
SERVER_RESPONSES = "ringgate_server_responses_total"  # upstream, server, class
DURATION = "ringgate_upstream_request_duration_seconds"  # histogram; upstream
CONNECTIONS = "ringgate_connections"  # open client connections; shard
ACCEPTED = "ringgate_connections_accepted_total"  # listener
NO_DESCRIPTORS = "ringgate_accept_no_descriptors_total"  # EMFILE: accepting rested
AT_LIMIT = "ringgate_accept_at_limit_total"  # max_connections: accepting rested
CONNECTS_EXHAUSTED = "ringgate_connects_exhausted_total"  # no descriptor for a server connection
BUFFERS_EXHAUSTED = "ringgate_ring_buffers_exhausted_total"  # shard
BUFFERS_RELIEVED = "ringgate_ring_buffers_relieved_total"  # shard
BUFFERS_USED = "ringgate_ring_buffers_used"  # shard
RETRIES = "ringgate_upstream_retries_total"  # upstream
SERVER_OPENED = "ringgate_server_connects_total"  # upstream, server
SERVER_REUSED = "ringgate_server_reuses_total"  # upstream, server
SERVER_CONNECT_FAILURES = "ringgate_server_connect_failures_total"  # upstream, server
SERVER_FAILURES = "ringgate_server_failures_total"  # upstream, server
SERVER_UP = "ringgate_server_up"  # upstream, server
BYTES_SENT = "ringgate_sent_bytes_total"  # listener
LOG_DROPPED = "ringgate_access_log_dropped_total"
REFUSED = "ringgate_requests_refused_total"  # malformed or over a limit
