/* A fake engine for measuring proxies: engine PORT EVENTS [PACE]
 *
 * Any GET is answered with a model list; a POST with about 1 kB of JSON, or, when it asks for a stream, with EVENTS
 * server-sent events, each in a write of its own: in one burst, or one every PACE microseconds, as a model makes them.
 * Usage is what an engine with a prefix cache would say of the same prompt sent again: a token for four bytes, nearly
 * all of them cached. One thread, epoll, nothing allocated per request. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILES = 8192, REQUEST_MAX = 1 << 20 };

typedef struct { char *buffer; int length, left; } Client; /* left: events of a paced stream that are still due */
static Client clients[FILES];
static char whole[4096], listing[1024], event[512], last[512];
static char *prompt_at, *cached_at; /* nine places each */
static int whole_n, listing_n, event_n, last_n, events, pace_us, fd_max;

static int put(int fd, const char *data, int n) {
    while (n > 0) {
        ssize_t sent = send(fd, data, n, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) { usleep(20); continue; }
        if (sent <= 0) return -1;
        data += sent, n -= sent;
    }
    return 0;
}

static int response(char *into, const char *type, const char *body) {
    return sprintf(into, "HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %zu\r\n\r\n%s", type, strlen(body), body);
}

static int chunk(char *into, const char *data) { return sprintf(into, "%zx\r\n%s\r\n", strlen(data), data); }

static void compose(void) {
    char text[800], body[2048];
    memset(text, 'x', sizeof text);
    for (int i = 6; i < 700; i += 7) text[i] = ' ';
    text[700] = 0;
    snprintf(body, sizeof body,
        "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":"
        "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],\"usage\":"
        "{\"prompt_tokens\":        1,\"completion_tokens\":100,"
        "\"prompt_tokens_details\":{\"cached_tokens\":        0}}}", text);
    whole_n = response(whole, "application/json", body);
    prompt_at = strstr(whole, "\"prompt_tokens\":") + 16;
    cached_at = strstr(whole, "\"cached_tokens\":") + 16;
    listing_n = response(listing, "application/json",
        "{\"object\":\"list\",\"data\":[{\"id\":\"m\",\"object\":\"model\",\"created\":1,\"owned_by\":\"bench\"}]}");
    event_n = chunk(event,
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token \"},\"finish_reason\":null}]}\n\n");
    last_n = chunk(last,
        "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\","
        "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n");
    last_n += sprintf(last + last_n, "0\r\n\r\n");
}

static int json(int fd, int body_bytes) {
    char digits[32];
    int prompt = body_bytes / 4 + 1;
    sprintf(digits, "%9d", prompt), memcpy(prompt_at, digits, 9);
    sprintf(digits, "%9d", prompt > 16 ? prompt - 16 : 0), memcpy(cached_at, digits, 9);
    return put(fd, whole, whole_n);
}

static int stream(int fd, Client *c) {
    static const char head[] =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    if (put(fd, head, sizeof head - 1)) return -1;
    if (pace_us) { c->left = events + 1; return 0; }
    for (int i = 0; i < events; i++)
        if (put(fd, event, event_n)) return -1;
    return put(fd, last, last_n);
}

/* Answer every whole request in the buffer; -1 when the client is to be dropped. */
static int answer(int fd, Client *c) {
    for (;;) {
        c->buffer[c->length] = 0;
        char *end = strstr(c->buffer, "\r\n\r\n");
        if (!end) return 0;
        int head = end - c->buffer + 4;
        char *field = strcasestr(c->buffer, "\ncontent-length:");
        int total = head + (field && field < end ? atoi(field + 16) : 0);
        if (total >= REQUEST_MAX) return -1;
        if (c->length < total) return 0;
        int bad;
        if (!strncmp(c->buffer, "GET", 3)) bad = put(fd, listing, listing_n);
        else if (memmem(c->buffer + head, total - head, "\"stream\":true", 13)) bad = stream(fd, c);
        else bad = json(fd, total - head);
        if (bad) return -1;
        memmove(c->buffer, c->buffer + total, c->length - total);
        c->length -= total;
    }
}

static long now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000L + at.tv_nsec / 1000;
}

/* One event for each paced stream. */
static void beat(void) {
    for (int fd = 0; fd <= fd_max; fd++) {
        Client *c = &clients[fd];
        if (c->left <= 0) continue;
        int bad = --c->left ? put(fd, event, event_n) : put(fd, last, last_n);
        if (bad) c->left = 0; /* its end is read where it was lost */
    }
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    signal(SIGPIPE, SIG_IGN);
    events = atoi(argv[2]);
    pace_us = argc > 3 ? atoi(argv[3]) : 0;
    compose();
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poll = epoll_create1(0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&at, sizeof at) || listen(listener, 1024)) { perror("listen"); return 1; }
    struct epoll_event event_in = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event_in);
    long due = now_us() + pace_us;
    for (;;) {
        long wait_us = due - now_us();
        int count = epoll_wait(poll, ready, 256, !pace_us ? -1 : wait_us > 0 ? (wait_us + 999) / 1000 : 0);
        if (pace_us && now_us() >= due) beat(), due = now_us() + pace_us;
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int client = accept4(listener, 0, 0, SOCK_NONBLOCK);
                if (client < 0) continue;
                if (client >= FILES) { close(client); continue; }
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                if (!clients[client].buffer) clients[client].buffer = malloc(REQUEST_MAX + 1);
                clients[client].length = clients[client].left = 0;
                if (client > fd_max) fd_max = client;
                struct epoll_event add = {.events = EPOLLIN, .data.fd = client};
                epoll_ctl(poll, EPOLL_CTL_ADD, client, &add);
                continue;
            }
            Client *c = &clients[fd];
            ssize_t got = recv(fd, c->buffer + c->length, REQUEST_MAX - c->length, 0);
            if (got < 0 && errno == EAGAIN) continue;
            if (got <= 0 || (c->length += got, answer(fd, c))) c->left = 0, close(fd);
        }
    }
}
