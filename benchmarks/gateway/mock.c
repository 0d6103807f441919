/* An endpoint that speaks the OpenAI chat protocol and costs next to nothing: one thread, epoll, answers made beforehand.
 *
 *   mock PORT
 *
 * POST /v1/chat/completions   a chat.completion; with "stream":true 64 chunks, one write each, the usage where asked for
 * GET  /v1/models             the model that it serves
 * GET  /counts                {"requests", "streams", "tokens"} since the start
 * POST /set/DELAY/PACE        wait DELAY us before each answer, and PACE us between the chunks of a stream
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DESCRIPTORS 8192
#define REQUEST_BYTES 65536
#define CHUNKS 64
#define PIECES (CHUNKS + 3) /* the header before them; the usage and [DONE] behind them */
#define PROMPT_TOKENS 96
#define ANSWER_TOKENS 64
#define MODEL "bench-model"

struct piece {
    char *bytes;
    size_t length;
};

struct connection {
    unsigned generation; /* a timer of an earlier connection with this descriptor does nothing */
    int streaming, with_usage;
    int next;      /* piece of the stream to write */
    size_t offset; /* within it */
    size_t length;
    char request[REQUEST_BYTES + 1];
};

struct timer {
    uint64_t due;
    int descriptor;
    unsigned generation;
};

static struct connection *connections[DESCRIPTORS];
static struct timer heap[DESCRIPTORS * 2];
static int heap_size, poller, alarm_clock;
static struct piece answer, pieces[PIECES];
static unsigned long requests, streams, tokens;
static uint64_t delay_ns, pace_ns;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static uint64_t now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (uint64_t)moment.tv_sec * 1000000000u + (uint64_t)moment.tv_nsec;
}

static struct piece text(const char *bytes) {
    return (struct piece){strdup(bytes), strlen(bytes)};
}

static struct piece http_chunk(const char *bytes) {
    char made[4096];
    snprintf(made, sizeof made, "%zx\r\n%s\r\n", strlen(bytes), bytes);
    return text(made);
}

static void make_answers(void) {
    char body[2048], whole[4096], said[1024] = "";
    for (int word = 0; word < 24; word++) strcat(said, word ? " and more" : "Paris");
    snprintf(body, sizeof body,
             "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1760000000,\"model\":\"" MODEL
             "\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},"
             "\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}",
             said, PROMPT_TOKENS, ANSWER_TOKENS, PROMPT_TOKENS + ANSWER_TOKENS);
    snprintf(whole, sizeof whole, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
             strlen(body), body);
    answer = text(whole);

    pieces[0] = text("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
    const char *start = "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1760000000,"
                        "\"model\":\"" MODEL "\",\"choices\":[";
    for (int chunk = 0; chunk < CHUNKS; chunk++) {
        snprintf(body, sizeof body, "%s{\"index\":0,\"delta\":{%s\"content\":\" word%02d\"},\"finish_reason\":%s}]}\n\n",
                 start, chunk ? "" : "\"role\":\"assistant\",", chunk, chunk == CHUNKS - 1 ? "\"stop\"" : "null");
        pieces[chunk + 1] = http_chunk(body);
    }
    snprintf(body, sizeof body, "%s],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n",
             start, PROMPT_TOKENS, ANSWER_TOKENS, PROMPT_TOKENS + ANSWER_TOKENS);
    pieces[CHUNKS + 1] = http_chunk(body);
    pieces[CHUNKS + 2] = text("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static void set_alarm(void) {
    struct itimerspec when = {0};
    if (heap_size) {
        when.it_value.tv_sec = (time_t)(heap[0].due / 1000000000u);
        when.it_value.tv_nsec = (long)(heap[0].due % 1000000000u);
    }
    timerfd_settime(alarm_clock, TFD_TIMER_ABSTIME, &when, NULL);
}

static void push_timer(struct timer timer) {
    if (heap_size == DESCRIPTORS * 2) fail("too many timers");
    int place = heap_size++;
    while (place && heap[(place - 1) / 2].due > timer.due) {
        heap[place] = heap[(place - 1) / 2];
        place = (place - 1) / 2;
    }
    heap[place] = timer;
    if (!place) set_alarm();
}

static struct timer pop_timer(void) {
    struct timer first = heap[0], last = heap[--heap_size];
    int place = 0;
    for (int child; (child = 2 * place + 1) < heap_size; place = child) {
        if (child + 1 < heap_size && heap[child + 1].due < heap[child].due) child++;
        if (last.due <= heap[child].due) break;
        heap[place] = heap[child];
    }
    heap[place] = last;
    return first;
}

static void watch(int descriptor, int action, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = descriptor};
    epoll_ctl(poller, action, descriptor, &event);
}

static void hang_up(int descriptor) {
    connections[descriptor]->generation++;
    connections[descriptor]->length = 0;
    connections[descriptor]->streaming = 0;
    close(descriptor);
}

/* Return how much went out; what does not fit into the kernel's buffer waits for EPOLLOUT only within a stream. */
static ssize_t put(int descriptor, const char *bytes, size_t length) {
    ssize_t sent = send(descriptor, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return 0;
    return sent;
}

static void write_stream(int descriptor) {
    struct connection *it = connections[descriptor];
    while (it->next < PIECES) {
        if (it->next == CHUNKS + 1 && !it->with_usage) it->next++;
        struct piece piece = pieces[it->next];
        ssize_t sent = put(descriptor, piece.bytes + it->offset, piece.length - it->offset);
        if (sent < 0) {
            hang_up(descriptor);
            return;
        }
        it->offset += (size_t)sent;
        if (it->offset < piece.length) {
            watch(descriptor, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        it->offset = 0;
        it->next++;
        if (pace_ns && it->next > 1 && it->next <= CHUNKS) {
            push_timer((struct timer){now() + pace_ns, descriptor, it->generation});
            return;
        }
    }
    it->streaming = 0;
}

static void begin_answer(int descriptor) {
    struct connection *it = connections[descriptor];
    if (it->streaming) {
        write_stream(descriptor);
    } else if (put(descriptor, answer.bytes, answer.length) != (ssize_t)answer.length) {
        hang_up(descriptor);
    }
}

static int is_true(const char *body, const char *name) {
    const char *found = strstr(body, name);
    if (!found) return 0;
    found += strlen(name);
    while (*found == ' ' || *found == ':') found++;
    return *found == 't';
}

static void put_json(int descriptor, const char *status, const char *body) {
    char whole[1024];
    int length = snprintf(whole, sizeof whole, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                          status, strlen(body), body);
    if (put(descriptor, whole, (size_t)length) != length) hang_up(descriptor);
}

static void take_request(int descriptor, const char *head, const char *body) {
    struct connection *it = connections[descriptor];
    char json[256];
    unsigned long delay_us, pace_us;
    if (!strncmp(head, "POST /v1/chat/completions ", 26)) {
        requests++;
        tokens += PROMPT_TOKENS + ANSWER_TOKENS;
        it->streaming = is_true(body, "\"stream\"");
        it->with_usage = is_true(body, "\"include_usage\"");
        it->next = 0;
        it->offset = 0;
        streams += (unsigned long)it->streaming;
        if (delay_ns) {
            push_timer((struct timer){now() + delay_ns, descriptor, it->generation});
        } else {
            begin_answer(descriptor);
        }
    } else if (!strncmp(head, "GET /v1/models ", 15)) {
        put_json(descriptor, "200 OK",
                 "{\"object\":\"list\",\"data\":[{\"id\":\"" MODEL "\",\"object\":\"model\",\"created\":0,\"owned_by\":\"bench\"}]}");
    } else if (!strncmp(head, "GET /counts ", 12)) {
        snprintf(json, sizeof json, "{\"requests\":%lu,\"streams\":%lu,\"tokens\":%lu}", requests, streams, tokens);
        put_json(descriptor, "200 OK", json);
    } else if (sscanf(head, "POST /set/%lu/%lu ", &delay_us, &pace_us) == 2) {
        delay_ns = delay_us * 1000u;
        pace_ns = pace_us * 1000u;
        put_json(descriptor, "200 OK", "{}");
    } else {
        put_json(descriptor, "404 Not Found", "{\"error\":{\"message\":\"the mock has no such route\"}}");
    }
}

static void read_requests(int descriptor) {
    struct connection *it = connections[descriptor];
    ssize_t got = read(descriptor, it->request + it->length, REQUEST_BYTES - it->length);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { /* also a request that is too long for us */
        hang_up(descriptor);
        return;
    }
    it->length += (size_t)got;
    it->request[it->length] = 0;
    char *end = strstr(it->request, "\r\n\r\n");
    if (!end) return;
    char *body = end + 4;
    *end = 0;
    char *header = strcasestr(it->request, "\r\ncontent-length:");
    if (strcasestr(it->request, "\r\ntransfer-encoding:")) {
        put_json(descriptor, "411 Length Required", "{\"error\":{\"message\":\"the mock takes no chunked requests\"}}");
        hang_up(descriptor);
        return;
    }
    size_t wanted = header ? strtoul(header + 17, NULL, 10) : 0;
    *end = '\r';
    if ((size_t)(it->request + it->length - body) < wanted) return;
    it->length = 0; /* clients wait for the answer before they ask again */
    take_request(descriptor, it->request, body);
}

static void accept_all(int listening) {
    for (int descriptor; (descriptor = accept4(listening, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (descriptor >= DESCRIPTORS) {
            close(descriptor);
            continue;
        }
        int on = 1;
        setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (!connections[descriptor]) connections[descriptor] = calloc(1, sizeof(struct connection));
        if (!connections[descriptor]) fail("memory");
        watch(descriptor, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static void ring(void) {
    uint64_t times;
    if (read(alarm_clock, &times, sizeof times) < 0) return;
    for (uint64_t moment = now(); heap_size && heap[0].due <= moment;) {
        struct timer timer = pop_timer();
        struct connection *it = connections[timer.descriptor];
        if (it->generation != timer.generation) continue;
        if (it->streaming && it->next) write_stream(timer.descriptor);
        else begin_answer(timer.descriptor);
    }
    set_alarm();
}

int main(int count, char **arguments) {
    if (count != 2) {
        fprintf(stderr, "usage: mock PORT\n");
        return 2;
    }
    make_answers();
    int listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(arguments[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listening, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(listening, 1024)) fail("listen");
    poller = epoll_create1(0);
    alarm_clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    watch(listening, EPOLL_CTL_ADD, EPOLLIN);
    watch(alarm_clock, EPOLL_CTL_ADD, EPOLLIN);
    struct epoll_event events[256];
    for (;;) {
        int ready = epoll_wait(poller, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int descriptor = events[i].data.fd;
            if (descriptor == listening) {
                accept_all(listening);
            } else if (descriptor == alarm_clock) {
                ring();
            } else if (events[i].events & EPOLLOUT) {
                watch(descriptor, EPOLL_CTL_MOD, EPOLLIN);
                write_stream(descriptor);
            } else {
                read_requests(descriptor);
            }
        }
    }
}
