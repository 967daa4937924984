/* A load generator for MQTT 3.1.1 brokers: one thread, epoll, so that the broker is what is measured.
 *
 *     load PORT publish CLIENTS WINDOW SIZE MESSAGES QOS SUBSCRIBERS
 *     load PORT connect CLIENTS
 *
 * publish: CLIENTS connections publish MESSAGES in all, SIZE bytes of payload each, at most WINDOW unacknowledged a
 * connection. A stream of QoS 0 ends with one message of QoS 1, whose PUBACK says that all before it were taken. Each
 * of SUBSCRIBERS (QoS 1 at most) must get every message. The clock starts when all are connected, and stops with the
 * last acknowledgement (PUBACK, PUBCOMP) and the last message received.
 * connect: CLIENTS connections, 200 at a time; then they are held until standard input ends.
 *
 * Prints one JSON object on standard output; "cpu" is this process's own, in seconds. Anything unexpected ends it with
 * exit code 1 and a line on standard error.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PATIENCE_MS = 60000, OPENING = 200, QOS_0_CHUNK = 32768, BUFFER = 1 << 18 };

struct client {
    int fd, subscriber, watching_output;
    long left, open;            /* messages to publish; unacknowledged ones */
    uint16_t id;
    unsigned char *packet;      /* a PUBLISH, whose packet id is filled in */
    size_t packet_size, id_at;
    unsigned char *out;
    size_t out_start, out_end, out_room;
    unsigned char *in;
    size_t in_size, in_room;
};

static int poll_fd, qos;
static int ready;
static long window, acked, received;
static size_t payload;
static double last;             /* when something was acknowledged or received */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s (%s)\n", what, errno ? strerror(errno) : "no system error");
    exit(1);
}

static void *grown(void *memory, size_t size) {
    void *more = realloc(memory, size);
    if (!more) fail("out of memory");
    return more;
}

static void append(struct client *c, const void *data, size_t size) {
    if (c->out_end + size > c->out_room) {
        memmove(c->out, c->out + c->out_start, c->out_end - c->out_start);
        c->out_end -= c->out_start;
        c->out_start = 0;
        if (c->out_end + size > c->out_room) c->out = grown(c->out, c->out_room = 2 * (c->out_end + size));
    }
    memcpy(c->out + c->out_end, data, size);
    c->out_end += size;
}

static void watch(struct client *c, int output) {
    if (c->watching_output == output) return;
    struct epoll_event event = {.events = EPOLLIN | (output ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event)) fail("epoll_ctl");
    c->watching_output = output;
}

/* Send what waits; return whether all of it went. */
static int flush(struct client *c) {
    while (c->out_start < c->out_end) {
        ssize_t count = send(c->fd, c->out + c->out_start, c->out_end - c->out_start, MSG_NOSIGNAL);
        if (count < 0 && errno == EAGAIN) {
            watch(c, 1);
            return 0;
        }
        if (count < 0) fail("send");
        c->out_start += (size_t)count;
    }
    c->out_start = c->out_end = 0;
    watch(c, 0);
    return 1;
}

static size_t header(unsigned char *at, int first, size_t rest) {
    size_t i = 0;
    at[i++] = (unsigned char)first;
    do {
        at[i++] = (unsigned char)((rest & 127) | (rest > 127 ? 128 : 0));
        rest >>= 7;
    } while (rest);
    return i;
}

static size_t string(unsigned char *at, const char *text) {
    size_t size = strlen(text);
    at[0] = (unsigned char)(size >> 8);
    at[1] = (unsigned char)size;
    memcpy(at + 2, text, size);
    return size + 2;
}

static void make_publish(struct client *c, int number, int with_qos) {
    char topic[64];
    snprintf(topic, sizeof topic, "bench/%d/telemetry", number);
    size_t rest = 2 + strlen(topic) + (with_qos ? 2 : 0) + payload;
    c->packet = grown(c->packet, rest + 8);
    size_t i = header(c->packet, 0x30 | with_qos << 1, rest);
    i += string(c->packet + i, topic);
    c->id_at = with_qos ? i : 0;
    i += with_qos ? 2 : 0;
    memset(c->packet + i, 'x', payload);
    c->packet_size = i + payload;
}

static void publish(struct client *c) {
    if (c->id_at) {
        if (!++c->id) c->id = 1;
        c->packet[c->id_at] = (unsigned char)(c->id >> 8);
        c->packet[c->id_at + 1] = (unsigned char)c->id;
        c->open++;
    }
    append(c, c->packet, c->packet_size);
    c->left--;
}

static void pump(struct client *c, int number) {
    do {
        while (c->left && (qos ? c->open < window : c->out_end - c->out_start < QOS_0_CHUNK)) {
            if (!qos && c->left == 1) make_publish(c, number, 1);
            publish(c);
        }
    } while (flush(c) && c->left && !qos);
}

static void answer(struct client *c, int first, const unsigned char *id) {
    unsigned char packet[4] = {(unsigned char)first, 2, id[0], id[1]};
    append(c, packet, 4);
}

static void handle(struct client *c, const unsigned char *packet, const unsigned char *body) {
    switch (packet[0] >> 4) {
    case 2:
        if (body[1]) fail("CONNECT was refused");
        if (c->subscriber) {
            unsigned char ask[] = {0x82, 12, 0, 1, 0, 7, 'b', 'e', 'n', 'c', 'h', '/', '#', 1};
            append(c, ask, sizeof ask);
        } else {
            ready++;
        }
        break;
    case 9:
        if (body[2] > 2) fail("SUBSCRIBE was refused");
        ready++;
        break;
    case 3: {
        size_t topic = (size_t)body[0] << 8 | body[1];
        if ((packet[0] & 6) == 2) answer(c, 0x40, body + 2 + topic);
        received++;
        break;
    }
    case 5:
        answer(c, 0x62, body);
        break;
    case 4:
    case 7:
        c->open--;
        acked++;
        break;
    default:
        errno = 0;
        fail("a packet that nobody asked for");
    }
}

static void take(struct client *c) {
    static unsigned char buffer[BUFFER];
    ssize_t count = recv(c->fd, buffer, sizeof buffer, 0);
    if (count < 0 && errno == EAGAIN) return;
    if (count <= 0) fail("the broker closed a connection");
    const unsigned char *data = buffer;
    size_t size = (size_t)count, at = 0;
    if (c->in_size) {
        if (c->in_size + size > c->in_room) c->in = grown(c->in, c->in_room = 2 * (c->in_size + size));
        memcpy(c->in + c->in_size, buffer, size);
        size = c->in_size += size;
        data = c->in;
    }
    while (size - at >= 2) {
        size_t rest = 0, i = 1;
        int shift = 0, whole = 0;
        while (at + i < size) {
            unsigned char byte = data[at + i++];
            rest |= (size_t)(byte & 127) << shift;
            shift += 7;
            if (byte < 128) {
                whole = 1;
                break;
            }
        }
        if (!whole || size - at < i + rest) break;
        handle(c, data + at, data + at + i);
        at += i + rest;
    }
    if (size - at > c->in_room) c->in = grown(c->in, c->in_room = 2 * (size - at));
    memmove(c->in, data + at, size - at);
    c->in_size = size - at;
    last = now();
}

static void open_connection(struct client *c, int number, uint16_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&address, sizeof address)) fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event)) fail("epoll_ctl");
    char name[32];
    unsigned char packet[64];
    snprintf(name, sizeof name, "load-%d", number);
    size_t i = header(packet, 0x10, 12 + strlen(name));
    memcpy(packet + i, "\0\4MQTT\4\2\0\0", 10);
    i += 10;
    i += string(packet + i, name);
    append(c, packet, i);
    flush(c);
}

static void wait_for_events(struct client *clients, int publishing) {
    struct epoll_event events[512];
    int count = epoll_wait(poll_fd, events, 512, PATIENCE_MS);
    if (count == 0) {
        errno = 0;
        fail("nothing came for a minute");
    }
    for (int i = 0; i < count; i++) {
        struct client *c = events[i].data.ptr;
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) take(c);
        if (publishing && !c->subscriber) pump(c, (int)(c - clients));
        else flush(c);
    }
}

int main(int argc, char **argv) {
    int connecting = argc == 4 && !strcmp(argv[2], "connect");
    if (!connecting && (argc != 9 || strcmp(argv[2], "publish"))) {
        fprintf(stderr, "usage: load PORT publish CLIENTS WINDOW SIZE MESSAGES QOS SUBSCRIBERS | load PORT connect CLIENTS\n");
        return 2;
    }
    int publishers = atoi(argv[3]), subscribers = connecting ? 0 : atoi(argv[8]), total = publishers + subscribers;
    long messages = connecting ? 0 : atol(argv[6]) / publishers * publishers;
    window = connecting ? 0 : atol(argv[4]);
    payload = connecting ? 0 : (size_t)atol(argv[5]);
    qos = connecting ? 0 : atoi(argv[7]);
    poll_fd = epoll_create1(0);
    struct client *clients = calloc((size_t)total, sizeof *clients);
    if (!clients) fail("out of memory");
    double start = now();
    for (int opened = 0; ready < total;) {
        for (; opened < total && opened - ready < OPENING; opened++) {
            clients[opened].subscriber = opened >= publishers;
            open_connection(&clients[opened], opened, (uint16_t)atoi(argv[1]));
        }
        wait_for_events(clients, 0);
    }
    if (connecting) {
        printf("{\"connections\": %d, \"seconds\": %.6f}\n", total, now() - start);
        fflush(stdout);
        while (getchar() != EOF) {}
        return 0;
    }
    long owed = qos ? messages : publishers, due = messages * subscribers;
    double acked_at = 0, received_at = 0;
    start = now();
    for (int i = 0; i < publishers; i++) {
        make_publish(&clients[i], i, qos);
        clients[i].left = messages / publishers;
        pump(&clients[i], i);
    }
    while (acked < owed || received < due) {
        wait_for_events(clients, 1);
        if (!acked_at && acked >= owed) acked_at = last;
        if (!received_at && due && received >= due) received_at = last;
    }
    double end = received_at > acked_at ? received_at : acked_at;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    printf("{\"messages\": %ld, \"received\": %ld, \"seconds\": %.6f, \"cpu\": %.6f}\n", messages, received, end - start, cpu);
    return 0;
}
