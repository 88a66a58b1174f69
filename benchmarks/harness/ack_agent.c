/*
 * An agent that only acknowledges: the floor under every agent of HAProxy.
 *
 *     ack_agent PORT|PATH
 *
 * For a NOTIFY frame it does what the protocol asks for and nothing else: finds its end, echoes its
 * ids in an empty ACK (SPOE.txt, section 3.2.7), and sends the ACKs of one read in one write. It is
 * written in C, straight on epoll, so that neither Python nor a loop can be what makes the floor
 * high. It trusts HAProxy: no limit, no timeout, no check of anything.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { HELLO = 1, DISCONNECT = 2, NOTIFY = 3, ACK = 103 };
enum { PEERS = 4096, BUFFER = 1 << 16, EVENTS = 64 };

static const unsigned char agent_hello[] =
    "\x00\x00\x00\x40\x65\x00\x00\x00\x01\x00\x00"
    "\x07version\x08\x03" "2.0"
    "\x0emax-frame-size\x03\xfc\xf0\x06" /* 16380, HAProxy's default */
    "\x0c" "capabilities\x08\x0apipelining";

static const unsigned char agent_disconnect[] =
    "\x00\x00\x00\x21\x66\x00\x00\x00\x01\x00\x00"
    "\x0bstatus-code\x03\x00"
    "\x07message\x08\x02ok";

struct peer {
    size_t have;
    unsigned char in[BUFFER];
};

static struct peer *peers[PEERS];
static unsigned char out[BUFFER];

static void put_u32(unsigned char *p, uint32_t value)
{
    value = htonl(value);
    memcpy(p, &value, 4);
}

static uint32_t get_u32(const unsigned char *p)
{
    uint32_t value;
    memcpy(&value, p, 4);
    return ntohl(value);
}

static const unsigned char *after_varint(const unsigned char *p)
{
    if (*p++ >= 240)
        while (*p++ >= 128)
            ;
    return p;
}

/* Answer what one read brought; return 0 if the connection is to be closed. */
static int answer(int fd)
{
    struct peer *peer = peers[fd];
    ssize_t got = read(fd, peer->in + peer->have, BUFFER - peer->have);
    if (got <= 0)
        return 0;
    peer->have += (size_t)got;

    const unsigned char *p = peer->in, *end = p + peer->have;
    unsigned char *o = out;
    int open = 1;
    while (end - p >= 5) {
        uint32_t length = get_u32(p);
        if ((size_t)(end - p) < 4 + (size_t)length)
            break;
        if (p[4] == NOTIFY) {
            const unsigned char *ids = p + 9;
            size_t size = (size_t)(after_varint(after_varint(ids)) - ids);
            put_u32(o, (uint32_t)(5 + size));
            o[4] = ACK;
            put_u32(o + 5, 1);
            memcpy(o + 9, ids, size);
            o += 9 + size;
        } else if (p[4] == HELLO) {
            memcpy(o, agent_hello, sizeof agent_hello - 1);
            o += sizeof agent_hello - 1;
            open = memmem(p, 4 + length, "\x0bhealthcheck\x11", 13) == NULL;
        } else if (p[4] == DISCONNECT) {
            memcpy(o, agent_disconnect, sizeof agent_disconnect - 1);
            o += sizeof agent_disconnect - 1;
            open = 0;
        }
        p += 4 + length;
    }
    peer->have = (size_t)(end - p);
    memmove(peer->in, p, peer->have);
    if (o > out && write(fd, out, (size_t)(o - out)) != o - out)
        return 0;
    return open;
}

static int listen_on(const char *address)
{
    int one = 1, fd;
    if (strchr(address, '/')) {
        struct sockaddr_un un = {.sun_family = AF_UNIX};
        strncpy(un.sun_path, address, sizeof un.sun_path - 1);
        unlink(address);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(fd, (struct sockaddr *)&un, sizeof un) < 0)
            return -1;
    } else {
        struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(address))};
        in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        fd = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* connections inherit it */
        if (bind(fd, (struct sockaddr *)&in, sizeof in) < 0)
            return -1;
    }
    return listen(fd, 1024) < 0 ? -1 : fd;
}

int main(int argc, char **argv)
{
    int listener = argc == 2 ? listen_on(argv[1]) : -1;
    int poll = epoll_create1(0);
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN, .data.fd = listener};
    if (listener < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event) < 0)
        return 1;
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) {
                if (!answer(fd))
                    close(fd);
                continue;
            }
            fd = accept(listener, NULL, NULL);
            if (fd < 0 || fd >= PEERS) {
                close(fd);
                continue;
            }
            if (!peers[fd])
                peers[fd] = malloc(sizeof *peers[fd]);
            if (!peers[fd])
                return 1;
            peers[fd]->have = 0;
            event.data.fd = fd;
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
        }
    }
}
