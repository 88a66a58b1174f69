/*
 * HTTP clients that keep a rate, whatever the answers: a load for benchmarks/harness/http.py.
 *
 *     paced PORT SOURCE CLIENTS STEP RATE SECONDS SEED
 *
 * CLIENTS connections to 127.0.0.1:PORT are kept alive, each from an address of its own: SOURCE, and
 * STEP further from one to the next. With a STEP of 0, all are of one address. Requests come at random (Poisson), RATE a second in all, from one client
 * after another. Each is due at its time on one schedule that never shifts. A request that is sent
 * late is still timed from when it was due, so the delay of a stalled server is counted in full
 * (no "coordinated omission"). Ends after SECONDS, or at SIGTERM.
 *
 * A closed connection is opened again when the next request of its client is due. If the server
 * closes a connection after an answer and before the next one, the waiting requests are sent again
 * on a new connection (RFC 9112, section 9.3.1); otherwise they have failed.
 *
 * Prints a line of JSON, then a struct record for each answer or failure. "late_p99_us" is how late
 * the requests were sent, which is the fault of this program; "withheld" requests were never sent,
 * since too many of their client had no answer yet; "leaked" ones were admitted although the number
 * that the limit allows had been admitted before to its connection, all of them surely within one
 * second.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { WAITING = 64, BUFFER = 8192, EVENTS = 256 };
enum { LIMIT = 100 }; /* hits a second of one client, by default */

#define SECOND 1000000000LL
#define GRACE (SECOND / 2) /* for the last answers, at most */

static const char request[] = "GET / HTTP/1.1\r\nHost: bench.invalid\r\n\r\n";

struct client {
    int fd; /* -1: not connected */
    struct sockaddr_in source;
    unsigned first, waiting;   /* the requests without an answer, in a ring */
    int64_t due[WAITING], sent[WAITING];
    unsigned admitted;
    int kept;                  /* this connection has had an answer */
    int64_t last[LIMIT];       /* when those admitted last were sent, in a ring */
    size_t have;
    char in[BUFFER + 1];
};

static struct sockaddr_in target;
static struct client *clients;
static int poller;
static long sent, allowed, refused, failed, withheld, leaked, waiting, recorded;
static uint32_t *late;

static struct record {
    int64_t due; /* CLOCK_MONOTONIC, nanoseconds */
    uint32_t took;
    uint32_t status; /* 0: failed */
} *records;

static volatile sig_atomic_t ended;

static void end(int number)
{
    (void)number;
    ended = 1;
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static uint32_t clipped(int64_t value)
{
    return value > UINT32_MAX ? UINT32_MAX : (uint32_t)value;
}

/* Take the oldest request of a client that waits, with the status of its answer. */
static void done(struct client *c, int64_t when, uint32_t status)
{
    int64_t due = c->due[c->first];
    records[recorded++] = (struct record){due, clipped(when - due), status};
    c->first = (c->first + 1) % WAITING;
    c->waiting--;
    waiting--;
}

/* Close a connection; the requests that wait on it have failed. */
static void cut(struct client *c)
{
    close(c->fd);
    c->fd = -1;
    c->have = 0;
    c->kept = 0;
    failed += c->waiting;
    while (c->waiting)
        done(c, now(), 0);
}

static int open_to(struct client *c)
{
    int one = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(c->fd, (struct sockaddr *)&c->source, sizeof c->source) < 0
        || connect(c->fd, (struct sockaddr *)&target, sizeof target) < 0) {
        cut(c);
        return 0;
    }
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
    return 1;
}

/* The server has closed a connection: send the waiting requests again if that is allowed. */
static void closed(struct client *c)
{
    if (!c->kept || c->have || !c->waiting) {
        cut(c);
        return;
    }
    close(c->fd);
    c->kept = 0;
    if (!open_to(c))
        return;
    for (unsigned i = 0; i < c->waiting; i++)
        if (write(c->fd, request, sizeof request - 1) != sizeof request - 1) {
            cut(c);
            return;
        }
}

static void ask(struct client *c, int64_t due)
{
    if (c->waiting == WAITING) {
        withheld++;
        return;
    }
    int64_t when = now();
    late[sent++] = clipped(when - due);
    if (c->fd < 0 && !open_to(c)) {
        failed++;
        records[recorded++] = (struct record){due, 0, 0};
        return;
    }
    unsigned place = (c->first + c->waiting++) % WAITING;
    waiting++;
    c->due[place] = due;
    c->sent[place] = when;
    if (write(c->fd, request, sizeof request - 1) != sizeof request - 1)
        closed(c);
}

/* Take the answers that one read brought. */
static void answers(struct client *c)
{
    ssize_t got = read(c->fd, c->in + c->have, BUFFER - c->have);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        closed(c);
        return;
    }
    int64_t when = now();
    c->have += (size_t)got;
    c->in[c->have] = 0;
    char *p = c->in, *end, *length;
    while ((end = strstr(p, "\r\n\r\n"))) {
        length = strstr(p, "content-length: ");
        char *next = end + 4 + (length && length < end ? atol(length + 16) : 0);
        if (next > c->in + c->have || !c->waiting)
            break;
        if (!memcmp(p + 9, "200", 3)) {
            int64_t *last = &c->last[c->admitted % LIMIT];
            allowed++;
            leaked += c->admitted++ >= LIMIT && when - *last < SECOND;
            *last = c->sent[c->first];
        } else if (!memcmp(p + 9, "429", 3))
            refused++;
        else
            failed++;
        done(c, when, (uint32_t)atol(p + 9));
        c->kept = 1;
        p = next;
    }
    c->have -= (size_t)(p - c->in);
    memmove(c->in, p, c->have);
}

static int ascending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    if (argc != 8)
        return 2;
    int count = atoi(argv[3]), step = atoi(argv[4]);
    double rate = atof(argv[5]);
    int64_t seconds = (int64_t)(atof(argv[6]) * SECOND);
    srand48(atol(argv[7]));
    target.sin_family = AF_INET;
    target.sin_port = htons((uint16_t)atoi(argv[1]));
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    /* 1.5 times the expected number: more than chance can bring. */
    size_t most = (size_t)(rate * (double)seconds / SECOND * 1.5) + 1000;
    records = calloc(most, sizeof *records);
    late = calloc(most, sizeof *late);
    clients = calloc((size_t)count, sizeof *clients);
    poller = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1);
    signal(SIGTERM, end);
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < count; i++) {
        clients[i].source.sin_family = AF_INET;
        clients[i].source.sin_addr.s_addr = htonl(ntohl(inet_addr(argv[2])) + (uint32_t)(i * step));
        if (!open_to(&clients[i])) {
            perror("connect");
            return 1;
        }
    }

    struct epoll_event events[EVENTS];
    int64_t start = now(), stop = start + seconds, due = start, clock;
    for (long number = 0; (clock = now()) < stop + (waiting || due < stop ? GRACE : 0);) {
        if (ended && clock < stop)
            stop = clock;
        while (due <= clock && due < stop && (size_t)sent < most) {
            ask(&clients[number++ % count], due);
            due += (int64_t)(-log(1 - drand48()) / rate * SECOND);
        }
        int64_t wait = (due < stop ? due : waiting ? stop + GRACE : stop) - now();
        struct timespec timeout = {wait / SECOND, wait % SECOND};
        if (wait < 0)
            timeout = (struct timespec){0, 0};
        int ready = epoll_pwait2(poller, events, EVENTS, &timeout, NULL);
        for (int i = 0; i < ready; i++) {
            struct client *c = events[i].data.ptr;
            if (c->fd >= 0)
                answers(c);
        }
    }
    for (int i = 0; i < count; i++)
        cut(&clients[i]);
    qsort(late, (size_t)sent, sizeof *late, ascending);
    printf("{\"sent\": %ld, \"allowed\": %ld, \"refused\": %ld, \"failed\": %ld, "
           "\"withheld\": %ld, \"leaked\": %ld, \"late_p99_us\": %.1f}\n",
           sent, allowed, refused, failed, withheld, leaked,
           sent ? late[sent * 99 / 100] / 1000.0 : 0.0);
    fwrite(records, sizeof *records, (size_t)recorded, stdout);
    return 0;
}
