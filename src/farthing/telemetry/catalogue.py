"""Every metric Farthing has: name, type, labels, unit, meaning.

Names that begin with `nv_` are Triton's and those with `vllm:` vLLM's, used where the meaning is theirs too, so that
dashboards and alerts work unchanged; `process_` and `python_` are what Prometheus clients of any language say of
themselves; the rest is ours. `docs/reference/metrics.md` repeats this table, and a test holds the two together. Where
the values come from belongs to `metrics`.
"""

from typing import Final

from farthing.telemetry.exposition import Family

MODEL: Final = ("model", "version")

REQUEST_SUCCESS = Family(
    "nv_inference_request_success", "counter", MODEL, "requests", "Inference requests answered with a result"
)
REQUEST_FAILURE = Family(
    "nv_inference_request_failure",
    "counter",
    (*MODEL, "reason"),
    "requests",
    "Inference requests answered with an error",
)
INFERENCE_COUNT = Family(
    "nv_inference_count",
    "counter",
    MODEL,
    "rows",
    "Rows inferred; a request with 8 rows counts 8 (cache hits excluded)",
)
EXEC_COUNT = Family("nv_inference_exec_count", "counter", MODEL, "batches", "Batches run (cache hits excluded)")
REQUEST_DURATION = Family(
    "nv_inference_request_duration_us",
    "counter",
    MODEL,
    "microseconds",
    "Time from arrival to answer, summed over successful requests",
)
QUEUE_DURATION = Family(
    "nv_inference_queue_duration_us",
    "counter",
    MODEL,
    "microseconds",
    "Time spent queued, summed over requests that ran",
)
COMPUTE_INPUT_DURATION = Family(
    "nv_inference_compute_input_duration_us",
    "counter",
    MODEL,
    "microseconds",
    "Time batches took to put their inputs together, summed over the requests in them",
)
COMPUTE_INFER_DURATION = Family(
    "nv_inference_compute_infer_duration_us",
    "counter",
    MODEL,
    "microseconds",
    "Time batches took in the engine, summed over the requests in them",
)
COMPUTE_OUTPUT_DURATION = Family(
    "nv_inference_compute_output_duration_us",
    "counter",
    MODEL,
    "microseconds",
    "Time batches took to split their outputs, summed over the requests in them",
)
PENDING_REQUESTS = Family(
    "nv_inference_pending_request_count", "gauge", MODEL, "requests", "Requests queued and not yet running"
)
LOAD_DURATION = Family("nv_model_load_duration_secs", "gauge", MODEL, "seconds", "Time the model took to load")
CACHE_HITS = Family(
    "nv_cache_num_hits_per_model", "counter", MODEL, "requests", "Requests answered from the response cache"
)
CACHE_MISSES = Family(
    "nv_cache_num_misses_per_model", "counter", MODEL, "requests", "Requests looked up in the response cache in vain"
)
CACHE_HIT_DURATION = Family(
    "nv_cache_hit_duration_per_model", "counter", MODEL, "microseconds", "Time response cache look-ups took that hit"
)
CACHE_MISS_DURATION = Family(
    "nv_cache_miss_duration_per_model",
    "counter",
    MODEL,
    "microseconds",
    "Time response cache look-ups that missed and their insertions took",
)
CACHE_INSERTIONS = Family(
    "farthing_response_cache_insertions_total", "counter", MODEL, "answers", "Answers put into the response cache"
)
CACHE_COALESCED = Family(
    "farthing_response_cache_coalesced_total",
    "counter",
    MODEL,
    "requests",
    "Hits answered by the run of an equal request that was under way",
)
CACHE_BYTES = Family("farthing_response_cache_bytes", "gauge", (), "bytes", "Bytes the response cache holds now")
CACHE_BYTES_MAX = Family("farthing_response_cache_bytes_max", "gauge", (), "bytes", "Bytes the response cache may hold")
CACHE_ENTRIES = Family(
    "farthing_response_cache_entries", "gauge", (), "answers", "Answers the response cache holds now"
)
CACHE_EVICTIONS = Family(
    "farthing_response_cache_evictions_total", "counter", (), "answers", "Answers that left the cache to make room"
)
CPU_UTILIZATION = Family(
    "nv_cpu_utilization", "gauge", (), "ratio", "Share of the machine's CPU time in use since the last scrape, 0 to 1"
)
CPU_MEMORY_TOTAL = Family("nv_cpu_memory_total_bytes", "gauge", (), "bytes", "Memory of the machine")
CPU_MEMORY_USED = Family("nv_cpu_memory_used_bytes", "gauge", (), "bytes", "Memory of the machine in use")

MODEL_READY = Family("farthing_model_ready", "gauge", MODEL, "boolean", "1 if the model version takes requests, else 0")
MODEL_MEMORY = Family(
    "farthing_model_memory_bytes", "gauge", (*MODEL, "type", "id"), "bytes", "Memory the model holds on a device"
)
MODEL_LOADS = Family(
    "farthing_model_loads_total", "counter", MODEL, "loads", "Times the model version was loaded, on demand too"
)
MODEL_EVICTIONS = Family(
    "farthing_model_evictions_total", "counter", MODEL, "unloads", "Times the model version was unloaded to make room"
)
MODELS_MEMORY = Family(
    "farthing_models_memory_bytes", "gauge", (), "bytes", "Memory all models hold together, where there is a budget"
)
MODELS_MEMORY_BUDGET = Family(
    "farthing_models_memory_budget_bytes", "gauge", (), "bytes", "Memory all models may hold together"
)
REQUEST_SECONDS = Family(
    "farthing_inference_request_duration_seconds",
    "histogram",
    MODEL,
    "seconds",
    "Time from arrival to answer of successful requests",
)
QUEUE_SECONDS = Family(
    "farthing_inference_queue_duration_seconds", "histogram", MODEL, "seconds", "Time successful requests spent queued"
)
BATCH_ROWS = Family("farthing_batch_rows", "histogram", MODEL, "rows", "Rows in the batches that were run")
PENDING_ROWS = Family("farthing_pending_rows", "gauge", MODEL, "rows", "Rows queued and not yet running")
RUNNING_BATCHES = Family("farthing_running_batches", "gauge", MODEL, "batches", "Batches inside the engine now")
SEQUENCES_ACTIVE = Family(
    "farthing_sequences_active", "gauge", MODEL, "sequences", "Sequences of a stateful model that hold a slot now"
)
SEQUENCES_BACKLOG = Family(
    "farthing_sequences_backlog", "gauge", MODEL, "sequences", "Sequences of a stateful model that wait for a slot"
)
SEQUENCES_TIMED_OUT = Family(
    "farthing_sequences_timed_out_total",
    "counter",
    MODEL,
    "sequences",
    "Sequences ended because nothing came for `max_sequence_idle_microseconds`",
)

FRAME_STREAMS_OPEN = Family(
    "farthing_frame_streams_open", "gauge", MODEL, "streams", "Streams of frames that are open now"
)
FRAMES_RECEIVED = Family("farthing_frames_received_total", "counter", MODEL, "frames", "Frames that came")
FRAMES_ANSWERED = Family(
    "farthing_frames_answered_total",
    "counter",
    (*MODEL, "timeliness"),
    "frames",
    "Frames that were run and answered, `on_time` or `late`",
)
FRAMES_DROPPED = Family(
    "farthing_frames_dropped_total",
    "counter",
    (*MODEL, "reason"),
    "frames",
    "Frames dropped before they ran: `superseded` by a newer one, too `late`, `overload`, or their client `gone`",
)
FRAMES_FAILED = Family("farthing_frames_failed_total", "counter", MODEL, "frames", "Frames answered with an error")
FRAME_SECONDS = Family(
    "farthing_frame_duration_seconds",
    "histogram",
    MODEL,
    "seconds",
    "Time from a frame's arrival to its answer, of those that were run",
)

LANGUAGE_MODEL: Final = ("model_name",)

GENERATIONS_RUNNING = Family(
    "vllm:num_requests_running", "gauge", LANGUAGE_MODEL, "generations", "Generations that take part in steps now"
)
GENERATIONS_WAITING = Family(
    "vllm:num_requests_waiting", "gauge", LANGUAGE_MODEL, "generations", "Generations that wait to begin or go on"
)
KV_USAGE = Family(
    "vllm:kv_cache_usage_perc", "gauge", LANGUAGE_MODEL, "ratio", "Share of the KV blocks in use by generations, 0 to 1"
)
KV_TOKENS = Family(
    "farthing_kv_cache_tokens", "gauge", LANGUAGE_MODEL, "tokens", "Tokens whose keys and values the KV memory holds"
)
PROMPT_TOKENS = Family(
    "vllm:prompt_tokens_total", "counter", LANGUAGE_MODEL, "tokens", "Prompt tokens read, or found in the prefix cache"
)
GENERATION_TOKENS = Family("vllm:generation_tokens_total", "counter", LANGUAGE_MODEL, "tokens", "Tokens generated")
PREFIX_QUERIES = Family(
    "vllm:prefix_cache_queries_total",
    "counter",
    LANGUAGE_MODEL,
    "tokens",
    "Prompt tokens looked up in the prefix cache",
)
PREFIX_HITS = Family(
    "vllm:prefix_cache_hits_total", "counter", LANGUAGE_MODEL, "tokens", "Prompt tokens found in the prefix cache"
)
PREEMPTIONS = Family(
    "vllm:num_preemptions_total", "counter", LANGUAGE_MODEL, "preemptions", "Generations put back to wait for KV memory"
)
DRAFT_TOKENS = Family(
    "vllm:spec_decode_num_draft_tokens_total", "counter", LANGUAGE_MODEL, "tokens", "Tokens guessed ahead"
)
ACCEPTED_TOKENS = Family(
    "vllm:spec_decode_num_accepted_tokens_total", "counter", LANGUAGE_MODEL, "tokens", "Of those, guessed right"
)
GENERATION_STEPS = Family(
    "farthing_generation_steps_total", "counter", LANGUAGE_MODEL, "steps", "Runs of the model over a batch of tokens"
)
GENERATIONS_FINISHED = Family(
    "vllm:request_success_total",
    "counter",
    (*LANGUAGE_MODEL, "finished_reason"),
    "generations",
    "Generations that ended, by reason (`abort`: the client left, or the server failed)",
)
FIRST_TOKEN_SECONDS = Family(
    "vllm:time_to_first_token_seconds", "histogram", LANGUAGE_MODEL, "seconds", "Time from arrival to the first token"
)
INTER_TOKEN_SECONDS = Family(
    "vllm:inter_token_latency_seconds", "histogram", LANGUAGE_MODEL, "seconds", "Time between tokens of one generation"
)

HTTP_CONNECTIONS = Family("farthing_http_connections_open", "gauge", (), "connections", "HTTP connections open now")
HTTP_CONNECTIONS_TOTAL = Family(
    "farthing_http_connections_total", "counter", (), "connections", "HTTP connections accepted"
)
HTTP_REQUESTS = Family(
    "farthing_http_requests_total", "counter", ("route", "status"), "requests", "HTTP requests answered"
)
HTTP_IN_FLIGHT = Family(
    "farthing_http_requests_in_flight", "gauge", (), "requests", "HTTP requests received and not yet answered"
)
HTTP_RECEIVED = Family("farthing_http_received_bytes_total", "counter", (), "bytes", "Bytes read from HTTP connections")
HTTP_SENT = Family("farthing_http_sent_bytes_total", "counter", (), "bytes", "Bytes written to HTTP connections")
HTTP_REJECTED = Family(
    "farthing_http_rejected_total",
    "counter",
    ("reason",),
    "requests",
    "Requests or connections turned away before any model was asked",
)
GRPC_REQUESTS = Family(
    "farthing_grpc_requests_total", "counter", ("route", "code"), "requests", "gRPC requests answered"
)
GRPC_IN_FLIGHT = Family(
    "farthing_grpc_requests_in_flight", "gauge", (), "requests", "gRPC requests received and not yet answered"
)
LOOP_LAG = Family(
    "farthing_event_loop_lag_seconds",
    "histogram",
    (),
    "seconds",
    "How late the event loop ran a timer, four looks a second",
)
LOG_RECORDS_DROPPED = Family(
    "farthing_log_records_dropped_total", "counter", (), "records", "Log records lost because the log queue was full"
)
TRACES_DROPPED = Family(
    "farthing_trace_requests_dropped_total",
    "counter",
    (),
    "requests",
    "Sampled requests whose spans were lost because the export queue was full",
)
BUILD_INFO = Family(
    "farthing_build_info",
    "gauge",
    ("version", "python", "implementation", "system", "machine"),
    "none",
    "Always 1; the labels say what is running",
)

PROCESS_CPU = Family(
    "process_cpu_seconds_total", "counter", (), "seconds", "CPU time this process used, user and system"
)
PROCESS_MEMORY = Family("process_resident_memory_bytes", "gauge", (), "bytes", "Resident memory of this process")
PROCESS_START = Family("process_start_time_seconds", "gauge", (), "seconds", "When this process began, since 1970")
PROCESS_OPEN_FDS = Family("process_open_fds", "gauge", (), "descriptors", "File descriptors open")
PROCESS_MAX_FDS = Family("process_max_fds", "gauge", (), "descriptors", "File descriptors allowed")
GC_COLLECTIONS = Family(
    "python_gc_collections_total",
    "counter",
    ("generation",),
    "collections",
    "Runs of Python's cyclic garbage collector",
)
GC_COLLECTED = Family(
    "python_gc_objects_collected_total", "counter", ("generation",), "objects", "Objects freed by the garbage collector"
)
GC_UNCOLLECTABLE = Family(
    "python_gc_objects_uncollectable_total",
    "counter",
    ("generation",),
    "objects",
    "Objects the garbage collector found and could not free",
)

FAMILIES: Final = tuple(value for value in list(globals().values()) if isinstance(value, Family))
"""All of the above, in the order they are written."""
