/* A closed-loop client for measuring proxies: load PORT CONNECTIONS SECONDS WARM json|sse BODY_BYTES PATH
 *
 * "%d" in PATH is the connection's number. After WARM seconds it measures for SECONDS and prints one line of JSON:
 * requests, errors, seconds, requests/s, p50 and p99 in microseconds, events and events/s. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, SAMPLES = 4000000 };

typedef struct {
    int fd, length, head, expected, chunked, status;
    long long began;
    char *buffer, *request;
    int request_n, sent;
} Conn;

static int port, measuring, samples;
static long errors, events_seen;
static float *taken;
static int poll_fd;

static long long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int smaller(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void join(Conn *c) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&at, sizeof at)) { perror("connect"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event add = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &add);
}

static void ask(Conn *c) {
    c->length = c->head = c->chunked = c->status = 0;
    c->expected = -1;
    c->began = now();
    for (int sent = 0; sent < c->request_n;) {
        ssize_t n = send(c->fd, c->request + sent, c->request_n - sent, MSG_NOSIGNAL);
        if (n <= 0) return; /* the read that follows finds it closed */
        sent += n;
    }
}

static void done(Conn *c, int whole) {
    if (measuring) {
        if (whole && c->status == 200 && samples < SAMPLES) taken[samples++] = (now() - c->began) / 1e3;
        if (!whole || c->status != 200) errors++;
    }
}

/* More of an answer is here; 1 when it is whole. */
static int more(Conn *c, int got) {
    int from = c->length > 8 ? c->length - 8 : 0;
    c->length += got;
    c->buffer[c->length] = 0;
    if (!c->head) {
        char *end = strstr(c->buffer, "\r\n\r\n"), *field;
        if (!end) return 0;
        *end = 0;
        c->status = atoi(c->buffer + 9);
        if ((field = strcasestr(c->buffer, "\ncontent-length:"))) c->expected = atoi(field + 16);
        c->chunked = strcasestr(c->buffer, "\ntransfer-encoding: chunked") != 0;
        *end = '\r';
        from = c->head = end - c->buffer + 4;
    }
    if (measuring)
        for (char *p = c->buffer + (from < c->head ? c->head : from + 7); (p = strstr(p, "data: {")); p += 7) events_seen++;
    if (!c->chunked) return c->expected >= 0 && c->length >= c->head + c->expected;
    int whole = c->length >= 5 && !memcmp(c->buffer + c->length - 5, "0\r\n\r\n", 5);
    if (!whole && c->length > BUFFER / 2) { /* keep the tail of a long stream */
        memmove(c->buffer + c->head, c->buffer + c->length - 8, 8);
        c->length = c->head + 8;
    }
    return whole;
}

static void compose(Conn *c, int index, const char *path, int body_bytes, int sse) {
    char where[512];
    snprintf(where, sizeof where, path, index);
    char *text = malloc(body_bytes + 1), *body = malloc(body_bytes + 512);
    for (int i = 0; i < body_bytes; i++) text[i] = i % 7 == 6 ? ' ' : 'a' + (i * 31 + index) % 26;
    text[body_bytes] = 0;
    int n = sprintf(body, "{\"model\":\"m\",\"max_tokens\":200,\"stream\":%s,\"messages\":[{\"role\":\"system\",\"content\":"
        "\"be brief\"},{\"role\":\"user\",\"content\":\"%s\"}]}", sse ? "true" : "false", text);
    c->request = malloc(n + 1024);
    c->request_n = sprintf(c->request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
        "Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", where, port, "bench", n);
    memcpy(c->request + c->request_n, body, n);
    c->request_n += n;
    free(text), free(body);
}

int main(int argc, char **argv) {
    if (argc < 8) return 2;
    port = atoi(argv[1]);
    int connections = atoi(argv[2]), sse = argv[5][0] == 's', body_bytes = atoi(argv[6]);
    double seconds = atof(argv[3]), warm = atof(argv[4]);
    taken = malloc(sizeof(float) * SAMPLES);
    poll_fd = epoll_create1(0);
    Conn *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) {
        all[i].buffer = malloc(BUFFER + 1);
        compose(&all[i], i, argv[7], body_bytes, sse);
        join(&all[i]);
        ask(&all[i]);
    }
    long long start = now(), from = start;
    struct epoll_event ready[256];
    for (;;) {
        long long t = now();
        if (!measuring && t - start > warm * 1e9) measuring = 1, from = t;
        if (measuring && t - from > seconds * 1e9) break;
        int count = epoll_wait(poll_fd, ready, 256, 100);
        for (int i = 0; i < count; i++) {
            Conn *c = ready[i].data.ptr;
            ssize_t got = recv(c->fd, c->buffer + c->length, BUFFER - c->length, 0);
            if (got <= 0) {
                done(c, 0);
                close(c->fd);
                join(c);
                ask(c);
            } else if (more(c, got)) {
                done(c, 1);
                ask(c);
            }
        }
    }
    double elapsed = (now() - from) / 1e9;
    qsort(taken, samples, sizeof *taken, smaller);
    printf("{\"requests\":%d,\"errors\":%ld,\"seconds\":%.3f,\"rps\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"events\":%ld,"
        "\"events_s\":%.1f}\n", samples, errors, elapsed, samples / elapsed, samples ? taken[samples / 2] : 0,
        samples ? taken[(int)(samples * .99)] : 0, events_seen, events_seen / elapsed);
    return 0;
}
