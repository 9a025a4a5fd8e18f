// farthing._bench: the load loop for Python. Everything that comes in is checked here; the loop believes it.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <arpa/inet.h>
#include <stdexcept>

#include "loop.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using bench::Event;
using bench::Load;
using bench::Loop;
using bench::Record;

template <class T>
using Column = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(bool is_right, const char* message) {
  if (!is_right) throw std::invalid_argument(message);
}

std::vector<std::string_view> views(const nb::tuple& list) {
  std::vector<std::string_view> found;
  for (nb::handle one : list) {
    const auto bytes = nb::cast<nb::bytes>(one);
    found.emplace_back(bytes.c_str(), bytes.size());
    check(bytes.size() > 0, "a request must not be empty");
  }
  return found;
}

template <class To, class From, class Get>
nb::object column(const std::vector<From>& rows, Get get) {
  To* out = new To[rows.size()];
  nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<To*>(p); });
  for (std::size_t i = 0; i < rows.size(); ++i) out[i] = static_cast<To>(get(rows[i]));
  return nb::cast(nb::ndarray<nb::numpy, To, nb::ndim<1>>(out, {rows.size()}, owner));
}

// Keeps the requests' bytes alive as long as the loop looks at them.
class Run {
 public:
  Run(const std::string& address, int port, const std::string& wire, nb::tuple requests, nb::tuple heads, Column<std::int32_t> starts,
      Column<std::int32_t> order, Column<std::int64_t> arrivals, std::int64_t pause_ns, std::int64_t duration_ns,
      std::int64_t timeout_ns, std::int64_t requests_max, std::int64_t events_max, int connections, bool is_fed)
      : requests_(requests), heads_(heads), is_fed_(is_fed) {
    Load load;
    unsigned char numeric[16];
    check(inet_pton(AF_INET, address.c_str(), numeric) == 1 || inet_pton(AF_INET6, address.c_str(), numeric) == 1, "address must be numeric");
    check(port > 0 && port < 65536, "port must be 1 to 65535");
    check(wire == "http" || wire == "stream" || wire == "grpc", "wire must be http, stream or grpc");
    load.address = address;
    load.port = port;
    load.wire = wire == "http" ? bench::Wire::http : wire == "stream" ? bench::Wire::stream : bench::Wire::grpc;
    load.requests = views(requests);
    load.heads = views(heads);
    check(!load.requests.empty(), "there must be a request");
    check(load.wire != bench::Wire::grpc || load.heads.size() == load.requests.size(), "gRPC needs a head for each request");
    check(starts.size() >= 2, "there must be a chain");
    check(order.size() >= 1, "order must not be empty");
    load.chain_starts.assign(starts.data(), starts.data() + starts.size());
    load.order.assign(order.data(), order.data() + order.size());
    load.arrivals.assign(arrivals.data(), arrivals.data() + arrivals.size());
    check(load.chain_starts.front() == 0 && load.chain_starts.back() == static_cast<std::int64_t>(load.requests.size()), "chains must be all requests");
    for (std::size_t i = 1; i < load.chain_starts.size(); ++i) check(load.chain_starts[i] > load.chain_starts[i - 1], "a chain must not be empty");
    for (std::int32_t chain : load.order) check(chain >= 0 && chain + 1 < static_cast<std::int64_t>(load.chain_starts.size()), "order names a chain that is not there");
    for (std::size_t i = 1; i < load.arrivals.size(); ++i) check(load.arrivals[i] >= load.arrivals[i - 1], "arrivals must ascend");
    check(load.arrivals.empty() || load.arrivals.front() >= 0, "arrivals must not be before the start");
    check(pause_ns >= 0 && duration_ns > 0 && duration_ns < INT64_MAX / 4 && timeout_ns > 0 && timeout_ns < INT64_MAX / 4, "durations must be positive");
    check(requests_max > 0 && requests_max < INT32_MAX && events_max >= 0, "bounds must be positive");
    check(connections > 0 && connections <= 65536, "connections must be 1 to 65536");
    load.pause_ns = pause_ns;
    load.duration_ns = duration_ns;
    load.timeout_ns = timeout_ns;
    load.requests_max = requests_max;
    load.events_max = events_max;
    check(!is_fed || load.arrivals.empty(), "a load that is fed has no arrivals");
    load.connections = connections;
    load.is_fed = is_fed;
    loop_ = std::make_unique<Loop>(std::move(load));
  }

  void run() {
    check(!has_run_ && !is_fed_, "a load runs once, and one that is fed is served");
    has_run_ = true;
    nb::gil_scoped_release released;
    loop_->run();
  }
  void stop() { loop_->stop(); }

  void feed(std::int64_t first, Column<std::int32_t> which) {
    check(is_fed_, "this load is not fed");
    const std::vector<std::int32_t> asked(which.data(), which.data() + which.size());
    for (std::int32_t one : asked) check(one >= 0 && static_cast<std::size_t>(one) < requests_.size(), "there is no such request");
    nb::gil_scoped_release released;
    loop_->feed(first, asked);
  }
  void end_feed() { loop_->end_feed(); }

  // Turns the loop on the calling thread until there is something to tell: (number, status, tokens); None when it is over.
  nb::object serve() {
    check(is_fed_ && !has_run_, "this load is not fed, or it is over");
    std::vector<bench::Told> told;
    {
      nb::gil_scoped_release released;
      has_run_ = !loop_->serve(told);
    }
    if (has_run_) return nb::none();
    nb::list found;
    for (const bench::Told& one : told) found.append(nb::make_tuple(one.ticket, one.status, one.tokens));
    return found;
  }

  nb::dict progress() const {
    nb::dict told;
    told["sent"] = loop_->sent.load();
    told["done"] = loop_->done.load();
    told["failed"] = loop_->failed.load();
    told["tokens"] = loop_->tokens.load();
    told["in_flight"] = loop_->in_flight.load();
    return told;
  }

  // Only after `run` has returned.
  nb::dict take() {
    const auto& records = loop_->records;
    nb::dict told;
    told["intended_ns"] = column<std::int64_t>(records, [](const Record& r) { return r.intended; });
    told["sent_ns"] = column<std::int64_t>(records, [](const Record& r) { return r.sent; });
    told["first_ns"] = column<std::int64_t>(records, [](const Record& r) { return r.first; });
    told["end_ns"] = column<std::int64_t>(records, [](const Record& r) { return r.end; });
    told["request"] = column<std::int32_t>(records, [](const Record& r) { return r.request; });
    told["status"] = column<std::int32_t>(records, [](const Record& r) { return r.status; });
    told["tokens"] = column<std::int32_t>(records, [](const Record& r) { return r.tokens; });
    told["prompt_tokens"] = column<std::int32_t>(records, [](const Record& r) { return r.prompt_tokens; });
    told["completion_tokens"] = column<std::int32_t>(records, [](const Record& r) { return r.completion_tokens; });
    told["cached_tokens"] = column<std::int32_t>(records, [](const Record& r) { return r.cached_tokens; });
    told["lag_s"] = column<float>(records, [](const Record& r) { return r.lag_s; });
    told["held_s"] = column<float>(records, [](const Record& r) { return r.held_s; });
    told["number"] = column<std::int64_t>(loop_->tickets, [](std::int64_t one) { return one; });
    told["event_record"] = column<std::uint32_t>(loop_->events, [](const Event& e) { return e.record; });
    told["event_ns"] = column<std::int64_t>(loop_->events, [](const Event& e) { return e.at; });
    nb::dict samples;
    for (const auto& [status, body] : loop_->samples) samples[nb::int_(status)] = nb::bytes(body.data(), body.size());
    told["samples"] = samples;
    const auto& spent = loop_->spent;
    told["started_ns"] = spent.started;
    told["wall_s"] = spent.wall_s;
    told["cpu_s"] = spent.cpu_s;
    told["starved_s"] = spent.starved_s;
    told["connections_opened"] = spent.connections_opened;
    told["waited_for_connection"] = spent.waited_for_connection;
    told["events_lost"] = spent.events_lost;
    return told;
  }

 private:
  nb::tuple requests_, heads_;
  std::unique_ptr<Loop> loop_;
  bool is_fed_, has_run_ = false;
};

}  // namespace

NB_MODULE(_bench, m) {
  m.doc() = "The load loop: sends requests when they are due, notes when what happened. Sources in native/bench.";
  nb::class_<Run>(m, "Run")
      .def(nb::init<const std::string&, int, const std::string&, nb::tuple, nb::tuple, Column<std::int32_t>, Column<std::int32_t>,
                    Column<std::int64_t>, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, int, bool>(),
           nb::kw_only(), "address"_a, "port"_a, "wire"_a, "requests"_a, "heads"_a, "chain_starts"_a, "order"_a, "arrivals_ns"_a, "pause_ns"_a,
           "duration_ns"_a, "timeout_ns"_a, "requests_max"_a, "events_max"_a, "connections"_a, "is_fed"_a)
      .def("run", &Run::run)
      .def("stop", &Run::stop)
      .def("feed", &Run::feed)
      .def("end_feed", &Run::end_feed)
      .def("serve", &Run::serve)
      .def("progress", &Run::progress)
      .def("take", &Run::take);
}
