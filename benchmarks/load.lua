-- One fixed POST, and the figures as one line of JSON. What to send comes in files named by the environment,
-- because a body may hold any byte.
local function slurp(name)
  local file = assert(io.open(assert(os.getenv(name), name .. " is not set"), "rb"))
  local content = file:read("*a")
  file:close()
  return content
end

wrk.method = "POST"
wrk.body = slurp("LOAD_BODY")
for name, value in string.gmatch(slurp("LOAD_HEADERS"), "([^:\n]+): ([^\n]+)\n") do
  wrk.headers[name] = value
end

function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '\nLOAD {"requests": %d, "duration_us": %d, "p50_us": %.1f, "p99_us": %.1f, "max_us": %.1f, ' ..
    '"errors": {"connect": %d, "read": %d, "write": %d, "timeout": %d, "status": %d}}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    e.connect, e.read, e.write, e.timeout, e.status))
end
