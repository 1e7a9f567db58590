// A service: echoes calls, tells how many it has served, and ends when it is asked to.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>

#include "common.h"

struct service {
    struct kdbus_rt_bus *bus;
    // A call that is never answered in time; held for as long as its place.
    struct kdbus_rt_message *late;
    unsigned served;
    int running;
};

// Bytes of the memfds in a message.
static unsigned long long memfd_bytes(const struct kdbus_rt_message *message)
{
    unsigned long long bytes = 0;
    struct kdbus_rt_part part;
    for (size_t i = 0; kdbus_rt_message_part(message, i, &part) == 0; i++)
        if (part.kind == KDBUS_RT_PART_MEMFD && part.fd >= 0)
            bytes += part.size;
    return bytes;
}

static int answer(struct service *service, struct kdbus_rt_message *call)
{
    char text[64];
    size_t len;
    const void *payload = kdbus_rt_message_payload(call, &len);

    if (is_text(call, "stop")) {
        service->running = 0;
        return kdbus_rt_reply(call, NULL, 0);
    }
    if (is_text(call, "who am I")) {
        struct kdbus_rt_pids pids;
        char name[32];
        check(service->bus, "pids", kdbus_rt_message_pids(call, &pids));
        check(service->bus, "process name", kdbus_rt_message_text(call, KDBUS_RT_TEXT_PROCESS, name, sizeof name));
        snprintf(text, sizeof text, "%s %llu", name, (unsigned long long)pids.pid);
        return kdbus_rt_reply(call, text, strlen(text));
    }
    if (len >= 5 && memcmp(payload, "echo ", 5) == 0)
        return kdbus_rt_reply(call, (const char *)payload + 5, len - 5);
    if (memfd_bytes(call) != 0) {
        snprintf(text, sizeof text, "%llu", memfd_bytes(call));
        return kdbus_rt_reply(call, text, strlen(text));
    }
    return kdbus_rt_reply_error(call, KDBUS_RT_ERROR_UNKNOWN_METHOD, "no such method");
}

static void handle(struct service *service, struct kdbus_rt_message *message)
{
    if (kdbus_rt_message_kind(message) != KDBUS_RT_KIND_CALL)
        return;
    int result = answer(service, message);
    if (result < 0) {
        // The caller may have given up; that is no reason to end.
        fprintf(stderr, "reply: %s\n", kdbus_rt_error(service->bus));
        return;
    }
    service->served++;
    struct kdbus_rt_outgoing signal = {
        .topic = TOPIC,
        .payload = &service->served,
        .payload_len = sizeof service->served,
    };
    check(service->bus, "signal", kdbus_rt_send(service->bus, &signal, NULL));
}

int main(void)
{
    struct service service = { .running = 1 };
    struct kdbus_rt_options options = {
        .description = "echo",
        .attach_recv = KDBUS_RT_ATTACH_PIDS | KDBUS_RT_ATTACH_PID_COMM,
    };
    check(NULL, "connect", kdbus_rt_connect(NULL, &options, &service.bus));
    check(service.bus, "name", kdbus_rt_name_acquire(service.bus, NAME, 0, NULL));

    struct pollfd watched = { .fd = check(service.bus, "fd", kdbus_rt_fd(service.bus)), .events = POLLIN };
    while (service.running) {
        struct kdbus_rt_message *message;
        // The most urgent first, whatever its priority.
        int result = kdbus_rt_recv(service.bus, KDBUS_RT_RECV_PRIORITY, INT64_MAX, 0, &message);
        if (result == -EAGAIN) {
            if (poll(&watched, 1, -1) < 0 && errno != EINTR) {
                perror("poll");
                return 1;
            }
            continue;
        }
        check(service.bus, "receive", result);
        if (is_text(message, "late")) {
            kdbus_rt_message_free(service.late);
            service.late = message;
            continue;
        }
        handle(&service, message);
        kdbus_rt_message_free(message);
    }
    printf("served %u calls\n", service.served);
    kdbus_rt_message_free(service.late);
    kdbus_rt_close(service.bus);
    return 0;
}
