// A server that does nothing, as fast as one core can: what is measured against it is the load generator.
//
//   nothing PORT                    answers each POST with the same few bytes
//   nothing PORT STREAMS_HZ TOKENS  answers each POST with a stream of TOKENS events, STREAMS_HZ of them a second
//
// A request is whole when its head is and Content-Length bytes have followed; bodies are not looked at.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CONNECTIONS 8192
static char in[CONNECTIONS][8192];
static int size[CONNECTIONS], left[CONNECTIONS];
static const char kAnswer[] =
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n{\"outputs\":[]}\n";
static const char kHead[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static const char kToken[] = "49\r\ndata: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"}}]}   \n\n\r\n";
static const char kEnd[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

static void say(int fd, const char* text, size_t length) {
  if (send(fd, text, length, MSG_NOSIGNAL) < 0 && errno != EPIPE && errno != ECONNRESET) perror("send");
}

int main(int count, char** words) {
  if (count != 2 && count != 4) return fprintf(stderr, "nothing PORT [STREAMS_HZ TOKENS]\n"), 2;
  const int tokens = count == 4 ? atoi(words[3]) : 0, hz = count == 4 ? atoi(words[2]) : 0;
  struct rlimit files = {CONNECTIONS, CONNECTIONS};
  setrlimit(RLIMIT_NOFILE, &files);
  int door = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1, ring = epoll_create1(0);
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  setsockopt(door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(door, (void*)&at, sizeof at) || listen(door, 4096)) return perror("listen"), 1;
  struct epoll_event event = {.events = EPOLLIN, .data.fd = door}, found[512];
  epoll_ctl(ring, EPOLL_CTL_ADD, door, &event);
  int timer = -1;
  // Streams take turns: a twentieth of them at each tick, so that the events are spread over time.
  static int phase;
  if (hz) {
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    const long gap = 1000000000L / (hz * 20L);
    struct itimerspec spec = {{0, gap}, {0, gap}};
    timerfd_settime(timer, 0, &spec, 0);
    event.data.fd = timer;
    epoll_ctl(ring, EPOLL_CTL_ADD, timer, &event);
  }
  for (;;) {
    int ready = epoll_wait(ring, found, 512, -1);
    for (int i = 0; i < ready; ++i) {
      int fd = found[i].data.fd;
      if (fd == door) {
        while ((fd = accept4(door, 0, 0, SOCK_NONBLOCK)) >= 0) {
          if (fd >= CONNECTIONS) { close(fd); continue; }
          setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
          size[fd] = left[fd] = 0;
          event.data.fd = fd;
          epoll_ctl(ring, EPOLL_CTL_ADD, fd, &event);
        }
        continue;
      }
      if (fd == timer) {
        unsigned long long ticks;
        if (read(timer, &ticks, sizeof ticks) < 0) continue;
        for (; ticks; --ticks, phase = (phase + 1) % 20)
          for (int c = phase; c < CONNECTIONS; c += 20)
            if (left[c]) {
              say(c, kToken, sizeof kToken - 1);
              if (!--left[c]) say(c, kEnd, sizeof kEnd - 1);
            }
        continue;
      }
      ssize_t got = recv(fd, in[fd] + size[fd], sizeof in[fd] - 1 - size[fd], 0);
      if (got <= 0) {
        left[fd] = 0;
        close(fd);
        continue;
      }
      size[fd] += got;
      in[fd][size[fd]] = 0;
      char *end = strstr(in[fd], "\r\n\r\n"), *length = strcasestr(in[fd], "content-length:");
      if (!end || size[fd] < end + 4 - in[fd] + (length ? atoi(length + 15) : 0)) continue;
      size[fd] = 0;
      if (!hz) say(fd, kAnswer, sizeof kAnswer - 1);
      else say(fd, kHead, sizeof kHead - 1), left[fd] = tokens;
    }
  }
}
