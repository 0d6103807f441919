/* A load generator: one thread, epoll, connections kept open. Prints one line of JSON.
 *
 *   load --port P --requests N [--connections C] [--rate R] [--model M] [--key K] [--first F] [--stream] [--same]
 *
 * Closed loop: each connection asks again when it was answered. With --rate open loop: request i is due at start + i/R,
 * and its time counts from then, so that a slow answer does not hide the wait of those behind it.
 * Each request asks something else (a number from F on); with --same all ask the same.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
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

#define MAX_CONNECTIONS 1024
#define ANSWER_BYTES (1 << 20)
#define NUMBER_DIGITS 12
#define PATIENCE_NS 120000000000ull /* of the whole run, with no answer */
#define FILLER                                                                                                       \
    "The user writes from a small town, likes short answers with one example, has asked similar things before, and " \
    "wants to know how sure you are. Say so in the last sentence, and do not repeat the question in your answer."

struct connection {
    int descriptor;
    int busy;
    uint64_t due;     /* when its request was to be sent */
    size_t length;    /* of what has come */
    size_t position;  /* of the next chunk's size */
    size_t head;      /* length of the answer's header; 0 while it is not whole */
    long body;        /* length of the body; -1 when chunked */
    int status, closes;
    char *answer;
};

static int port, count = 1, streaming, same, poller, alarm_clock;
static long wanted, sent, completed, errors, events_read, first;
static double rate;
static const char *model = "bench-model", *key = "";
static char request[8192], *number, complaint[512];
static size_t request_length;
static uint64_t started, last_answer;
static uint32_t *microseconds;
static struct connection connections[MAX_CONNECTIONS];
static int idle[MAX_CONNECTIONS], idle_count;

static void fail(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void) {
    struct timespec moment;
    clock_gettime(CLOCK_MONOTONIC, &moment);
    return (uint64_t)moment.tv_sec * 1000000000u + (uint64_t)moment.tv_nsec;
}

static void make_request(void) {
    char body[4096];
    int length = snprintf(body, sizeof body,
                          "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You answer briefly.\"},"
                          "{\"role\":\"user\",\"content\":\"Question %0*d: what is the capital of France? " FILLER
                          "\"}],\"temperature\":0,\"max_tokens\":128%s}",
                          model, NUMBER_DIGITS, 0,
                          streaming ? ",\"stream\":true,\"stream_options\":{\"include_usage\":true}" : "");
    request_length = (size_t)snprintf(request, sizeof request,
                                      "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                                      "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                                      port, key, length, body);
    number = strstr(request, "Question ") + 9;
}

static void dial(struct connection *it) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    it->descriptor = socket(AF_INET, SOCK_STREAM, 0);
    if (it->descriptor < 0) fail("socket");
    if (connect(it->descriptor, (struct sockaddr *)&address, sizeof address)) fail("connect");
    int on = 1;
    setsockopt(it->descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)(it - connections)};
    epoll_ctl(poller, EPOLL_CTL_ADD, it->descriptor, &event);
}

static void dial_again(struct connection *it) {
    close(it->descriptor);
    dial(it);
}

static uint64_t due(long index) {
    return started + (uint64_t)((double)index / rate * 1e9);
}

static void ask(struct connection *it, uint64_t moment) {
    char digits[NUMBER_DIGITS + 1];
    snprintf(digits, sizeof digits, "%0*ld", NUMBER_DIGITS, same ? first : first + sent);
    memcpy(number, digits, NUMBER_DIGITS);
    it->due = rate > 0 ? due(sent) : moment;
    it->busy = 1;
    it->length = it->position = it->head = 0;
    sent++;
    if (send(it->descriptor, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) {
        dial_again(it); /* it was closed while it was idle */
        if (send(it->descriptor, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) fail("send");
    }
}

static void ask_what_is_due(void) {
    while (idle_count && sent < wanted) {
        uint64_t moment = now();
        if (rate > 0 && due(sent) > moment) {
            struct itimerspec when = {0};
            when.it_value.tv_sec = (time_t)(due(sent) / 1000000000u);
            when.it_value.tv_nsec = (long)(due(sent) % 1000000000u);
            timerfd_settime(alarm_clock, TFD_TIMER_ABSTIME, &when, NULL);
            return;
        }
        ask(&connections[idle[--idle_count]], moment);
    }
}

static void complain(struct connection *it, const char *what) {
    errors++;
    if (*complaint) return;
    snprintf(complaint, sizeof complaint, "status %d, %s: %.300s", it->status, what, it->head ? it->answer + it->head : "");
    for (char *c = complaint; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < 32) *c = ' ';
}

static void finish(struct connection *it) {
    uint64_t moment = now();
    last_answer = moment;
    it->answer[it->length] = 0;
    const char *tail = it->answer + (it->length > 256 ? it->length - 256 : 0);
    if (it->status != 200) {
        complain(it, "not answered");
    } else if (streaming ? !strstr(tail, "data: [DONE]") : !strstr(it->answer + it->head, "\"choices\"")) {
        complain(it, "not a whole answer");
    } else {
        microseconds[completed++] = (uint32_t)((moment - it->due) / 1000);
        for (char *event = it->answer + it->head; streaming && (event = strstr(event, "data: {")); event++) events_read++;
    }
    if (it->closes) dial_again(it);
    it->busy = 0;
    idle[idle_count++] = (int)(it - connections);
}

static void read_head(struct connection *it) {
    it->answer[it->length] = 0;
    char *end = strstr(it->answer, "\r\n\r\n");
    if (!end) return;
    *end = 0;
    it->head = it->position = (size_t)(end - it->answer) + 4;
    it->status = atoi(it->answer + 9);
    char *length = strcasestr(it->answer, "\r\ncontent-length:");
    it->body = length ? atol(length + 17) : -1;
    it->closes = strcasestr(it->answer, "\r\nconnection: close") != NULL;
}

/* Whether the last chunk, the one of no length, has come. */
static int chunks_are_whole(struct connection *it) {
    it->answer[it->length] = 0;
    while (it->position < it->length) {
        char *line = it->answer + it->position, *end = strstr(line, "\r\n");
        if (!end) return 0;
        size_t size = strtoul(line, NULL, 16), next = (size_t)(end - it->answer) + 2 + size + 2;
        if (next > it->length) return 0;
        it->position = next;
        if (!size) return 1;
    }
    return 0;
}

static void read_answer(struct connection *it) {
    ssize_t got = recv(it->descriptor, it->answer + it->length, ANSWER_BYTES - it->length, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        dial_again(it);
        if (!it->busy) return;
        complain(it, "the connection was closed in the middle");
        it->busy = 0;
        idle[idle_count++] = (int)(it - connections);
        return;
    }
    it->length += (size_t)got;
    if (!it->head) read_head(it);
    if (!it->head) return;
    if (it->body >= 0 ? it->length >= it->head + (size_t)it->body : chunks_are_whole(it)) finish(it);
}

static int by_size(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static uint32_t quantile(double share) {
    return completed ? microseconds[(long)((double)(completed - 1) * share + 0.5)] : 0;
}

static void read_options(int argument_count, char **arguments) {
    static const struct option options[] = {
        {"port", 1, NULL, 'p'},  {"requests", 1, NULL, 'n'}, {"connections", 1, NULL, 'c'},
        {"rate", 1, NULL, 'r'},  {"model", 1, NULL, 'm'},    {"key", 1, NULL, 'k'},
        {"first", 1, NULL, 'f'}, {"stream", 0, NULL, 's'},   {"same", 0, NULL, 'e'},
        {NULL, 0, NULL, 0},
    };
    for (int option; (option = getopt_long(argument_count, arguments, "", options, NULL)) != -1;) {
        switch (option) {
            case 'p': port = atoi(optarg); break;
            case 'n': wanted = atol(optarg); break;
            case 'c': count = atoi(optarg); break;
            case 'r': rate = atof(optarg); break;
            case 'm': model = optarg; break;
            case 'k': key = optarg; break;
            case 'f': first = atol(optarg); break;
            case 's': streaming = 1; break;
            case 'e': same = 1; break;
            default: exit(2);
        }
    }
    if (port <= 0 || wanted <= 0 || count <= 0 || count > MAX_CONNECTIONS) {
        fprintf(stderr, "load: needs --port, --requests and at most %d --connections\n", MAX_CONNECTIONS);
        exit(2);
    }
}

int main(int argument_count, char **arguments) {
    read_options(argument_count, arguments);
    make_request();
    microseconds = calloc((size_t)wanted, sizeof *microseconds);
    poller = epoll_create1(0);
    alarm_clock = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = MAX_CONNECTIONS}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, alarm_clock, &event);
    for (int i = 0; i < count; i++) {
        connections[i].answer = malloc(ANSWER_BYTES + 1);
        if (!microseconds || !connections[i].answer) fail("memory");
        dial(&connections[i]);
        idle[idle_count++] = i;
    }
    started = last_answer = now();
    for (ask_what_is_due(); completed + errors < wanted; ask_what_is_due()) {
        int ready = epoll_wait(poller, events, 256, 1000);
        for (int i = 0; i < ready; i++) {
            uint64_t times;
            if (events[i].data.u32 < MAX_CONNECTIONS) read_answer(&connections[events[i].data.u32]);
            else if (read(alarm_clock, &times, sizeof times) < 0) continue;
        }
        if (now() - last_answer > PATIENCE_NS) {
            if (!*complaint) snprintf(complaint, sizeof complaint, "no answer for %d s", (int)(PATIENCE_NS / 1000000000u));
            errors = wanted - completed;
        }
    }
    double seconds = (double)(now() - started) / 1e9;
    qsort(microseconds, (size_t)completed, sizeof *microseconds, by_size);
    printf("{\"completed\":%ld,\"errors\":%ld,\"complaint\":\"%s\",\"seconds\":%.6f,\"requests_per_second\":%.1f,"
           "\"events\":%ld,\"p10_us\":%u,\"p50_us\":%u,\"p90_us\":%u,\"p99_us\":%u}\n",
           completed, errors, complaint, seconds, (double)completed / seconds, events_read, quantile(.1), quantile(.5),
           quantile(.9), quantile(.99));
    return 0;
}
