/* A link between two network namespaces: delay, jitter, rate, loss and black holes each way, without netem.
 *
 *     link_emulator NAMESPACE_A NAMESPACE_B
 *
 * Makes a TUN device wb0 in each namespace and carries IP packets between them, in order. Commands come as lines on
 * standard input, each answered with one line on standard output:
 *
 *     set up|down|both KEY=VALUE …   rate (bits/s, 0: any), delay and jitter (seconds), loss (0..1), limit (bytes that
 *                                    wait for the rate; what is over it is dropped), hole (1: everything vanishes)
 *     count                          a JSON object for A to B ("up") and one for B to A ("down"), since the last reset
 *     reset                          counts begin anew
 *
 * Counted are packets that were put on the link, lost ones too: "bytes" of IP packets, "packets", "lost" (by loss or
 * hole), "dropped" (over the limit), "busy" (seconds that the rate had something to send). Ends with its input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { MTU = 2048, ROOM = 16384, BURST = 64 };

struct packet {
    double due;
    int size;
    char data[MTU];
};

struct direction {
    const char *name;
    int from, to;
    double rate, delay, jitter, loss, limit, hole;
    double free_at, last_due;   /* when the rate is free again; a packet never passes the one before it */
    struct packet *ring;
    unsigned head, tail;
    long long bytes, packets, lost, dropped;
    double busy;
};

static uint64_t state = 88172645463325252ull;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double chance(void) {    /* xorshift64: 0 <= x < 1, the same series in every run */
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) / 9007199254740992.0;
}

static void fail(const char *what) {
    fprintf(stderr, "link_emulator: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int device(const char *space) {
    char path[256];
    int here = open("/proc/self/ns/net", O_RDONLY);
    snprintf(path, sizeof path, "/run/netns/%s", space);
    int there = open(path, O_RDONLY);
    if (here < 0 || there < 0 || setns(there, CLONE_NEWNET))
        fail(path);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "wb0");
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request))
        fail("/dev/net/tun");
    if (setns(here, CLONE_NEWNET))
        fail("setns");
    close(here);
    close(there);
    return fd;
}

static void take(struct direction *d) {
    for (int n = 0; n < BURST; n++) {
        if (d->tail - d->head == ROOM)
            return;
        struct packet *p = &d->ring[d->tail % ROOM];
        ssize_t size = read(d->from, p->data, MTU);
        if (size <= 0)
            return;
        double at = now(), start = at > d->free_at ? at : d->free_at;
        double seconds = d->rate > 0 ? (double)size * 8 / d->rate : 0;
        if (d->rate > 0 && (start - at) * d->rate / 8 + (double)size > d->limit) {
            d->dropped++;
            continue;
        }
        d->free_at = start + seconds;
        d->busy += seconds;
        d->bytes += size;
        d->packets++;
        if (d->hole || chance() < d->loss) {
            d->lost++;
            continue;
        }
        double due = d->free_at + d->delay + chance() * d->jitter;
        p->due = d->last_due = due > d->last_due ? due : d->last_due;
        p->size = (int)size;
        d->tail++;
    }
}

static void give(struct direction *d) {
    double at = now();
    while (d->head != d->tail && d->ring[d->head % ROOM].due <= at) {
        struct packet *p = &d->ring[d->head % ROOM];
        if (!d->hole && write(d->to, p->data, (size_t)p->size) < 0 && errno == EAGAIN)
            return;
        d->head++;
    }
}

static void set(struct direction *d, const char *key, double value) {
    if (!strcmp(key, "rate")) {
        /* What waits, waits for the new rate; what is on its way arrives. */
        double at = now(), waiting = d->free_at > at ? (d->free_at - at) * d->rate / 8 : 0, before = d->free_at;
        d->rate = value;
        if (waiting > 0) {
            d->free_at = at + (value > 0 ? waiting * 8 / value : 0);
            double stretch = (d->free_at - at) / (before - at);
            for (unsigned n = d->head; n != d->tail; n++) {
                double left = d->ring[n % ROOM].due - d->delay - at;
                if (left > 0)
                    d->ring[n % ROOM].due = d->last_due = at + left * stretch + d->delay;
            }
        }
    } else if (!strcmp(key, "delay")) d->delay = value;
    else if (!strcmp(key, "jitter")) d->jitter = value;
    else if (!strcmp(key, "loss")) d->loss = value;
    else if (!strcmp(key, "limit")) d->limit = value;
    else if (!strcmp(key, "hole")) d->hole = value;
    else {
        errno = EINVAL;
        fail(key);
    }
}

static void obey(char *line, struct direction *both) {
    char *rest = line, *word = strsep(&rest, " \n");
    if (!strcmp(word, "set")) {
        word = strsep(&rest, " \n");
        int first = !strcmp(word, "down"), last = strcmp(word, "up") != 0;
        while ((word = strsep(&rest, " \n")) && *word) {
            char *value = strchr(word, '=');
            if (!value) {
                errno = EINVAL;
                fail(word);
            }
            *value++ = 0;
            for (int n = first; n <= last; n++)
                set(&both[n], word, atof(value));
        }
    } else if (!strcmp(word, "reset")) {
        for (int n = 0; n < 2; n++)
            both[n].bytes = both[n].packets = both[n].lost = both[n].dropped = 0, both[n].busy = 0;
    }
    printf("{");
    for (int n = 0; n < 2; n++)
        printf("%s\"%s\": {\"bytes\": %lld, \"packets\": %lld, \"lost\": %lld, \"dropped\": %lld, \"busy\": %.6f}",
               n ? ", " : "", both[n].name, both[n].bytes, both[n].packets, both[n].lost, both[n].dropped, both[n].busy);
    printf("}\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct direction both[2] = {{.name = "up", .limit = 256 << 10}, {.name = "down", .limit = 256 << 10}};
    char line[512];
    size_t have = 0;
    if (argc != 3)
        return 2;
    int a = device(argv[1]), b = device(argv[2]);
    both[0].from = both[1].to = a;
    both[0].to = both[1].from = b;
    for (int n = 0; n < 2; n++)
        if (!(both[n].ring = malloc(sizeof(struct packet) * ROOM)))
            fail("memory");
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        double first = 1e18, at;
        struct pollfd polls[3] = {{.fd = 0, .events = POLLIN}};
        for (int n = 0; n < 2; n++) {
            struct direction *d = &both[n];
            int full = d->tail - d->head == ROOM;
            polls[n + 1] = (struct pollfd){.fd = full ? -1 : d->from, .events = POLLIN};
            if (d->head != d->tail && d->ring[d->head % ROOM].due < first)
                first = d->ring[d->head % ROOM].due;
        }
        at = now();
        double wait = first > at ? first - at : 0.0;
        struct timespec timeout = {(time_t)wait, (long)((wait - (double)(time_t)wait) * 1e9)};
        if (ppoll(polls, 3, first < 1e17 ? &timeout : NULL, NULL) < 0 && errno != EINTR)
            fail("poll");
        if (polls[0].revents) {
            ssize_t size = read(0, line + have, sizeof line - 1 - have);
            if (size <= 0)
                return 0;
            have += (size_t)size;
            line[have] = 0;
            for (char *end; (end = strchr(line, '\n'));) {
                *end = 0;
                obey(line, both);
                have -= (size_t)(end + 1 - line);
                memmove(line, end + 1, have + 1);
            }
        }
        for (int n = 0; n < 2; n++) {
            take(&both[n]);
            give(&both[n]);
        }
    }
}
