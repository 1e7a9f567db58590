// A client: calls, hears signals, sends urgent messages past others, and passes memory without copying it.
#include <errno.h>
#include <unistd.h>

#include "common.h"

// Calls the service with a text; what it answers, to be freed.
static int call(struct kdbus_rt_bus *bus, const char *text, uint64_t ms, struct kdbus_rt_message **reply)
{
    struct kdbus_rt_outgoing message = { .name = NAME, .payload = text, .payload_len = strlen(text) };
    return kdbus_rt_call(bus, &message, kdbus_rt_after_ms(ms), -1, reply);
}

static void print_and_free(const char *what, struct kdbus_rt_message *message)
{
    size_t len;
    const char *text = kdbus_rt_message_payload(message, &len);
    printf("%s: %.*s\n", what, (int)len, text ? text : "");
    kdbus_rt_message_free(message);
}

static void calls(struct kdbus_rt_bus *bus)
{
    struct kdbus_rt_message *reply;
    check(bus, "call", call(bus, "echo hello", 30000, &reply));
    print_and_free("echo", reply);
    check(bus, "call", call(bus, "who am I", 30000, &reply));
    char expected[64];
    snprintf(expected, sizeof expected, "client %ld", (long)getpid());
    printf("known: %s\n", is_text(reply, expected) ? "yes" : "no");
    kdbus_rt_message_free(reply);

    int result = call(bus, "sing", 30000, &reply);
    printf("refused: %s, code %u, %s\n", strerror(-result), kdbus_rt_remote_code(bus), kdbus_rt_error(bus));
    result = call(bus, "late", 20, &reply);
    printf("late: %s, %s\n", strerror(-result), kdbus_rt_error(bus));
}

// A pipe that is readable already ends the call at once, long before its deadline.
static void cancelled_call(struct kdbus_rt_bus *bus)
{
    int ends[2];
    if (pipe(ends) < 0 || write(ends[1], "x", 1) != 1) {
        perror("pipe");
        exit(1);
    }
    struct kdbus_rt_outgoing message = { .name = NAME, .payload = "late", .payload_len = 4 };
    int result = kdbus_rt_call(bus, &message, KDBUS_RT_FOREVER, ends[0], NULL);
    printf("cancelled: %s\n", strerror(-result));
    close(ends[0]);
    close(ends[1]);
}

static void memory(struct kdbus_rt_bus *bus)
{
    static char block[65536];
    int fd = check(NULL, "memfd", kdbus_rt_memfd(block, sizeof block));
    struct kdbus_rt_part part = { .kind = KDBUS_RT_PART_MEMFD, .fd = fd, .size = sizeof block };
    struct kdbus_rt_outgoing message = { .name = NAME, .parts = &part, .part_count = 1 };
    struct kdbus_rt_message *reply;
    check(bus, "memfd call", kdbus_rt_call(bus, &message, kdbus_rt_after_ms(30000), -1, &reply));
    close(fd);
    print_and_free("memfd", reply);
}

static void signals(struct kdbus_rt_bus *bus)
{
    struct kdbus_rt_message *message;
    check(bus, "signal", kdbus_rt_recv(bus, 0, 0, kdbus_rt_after_ms(30000), &message));
    size_t len;
    const unsigned *served = kdbus_rt_message_payload(message, &len);
    if (kdbus_rt_message_is_about(message, TOPIC) && len == sizeof *served)
        printf("signal: %u served\n", *served);
    kdbus_rt_message_free(message);
}

// Three messages wait at another connection; the urgent one, sent last, is received first.
static void priorities(struct kdbus_rt_bus *bus)
{
    static const struct { const char *text; int64_t priority; } sent[] = {
        { "block 1", 0 }, { "block 2", 0 }, { "mute", -10 },
    };
    struct kdbus_rt_bus *other;
    check(NULL, "connect", kdbus_rt_connect(NULL, NULL, &other));
    for (size_t i = 0; i < sizeof sent / sizeof sent[0]; i++) {
        struct kdbus_rt_outgoing message = {
            .id = kdbus_rt_id(other),
            .priority = sent[i].priority,
            .payload = sent[i].text,
            .payload_len = strlen(sent[i].text),
        };
        check(bus, "send", kdbus_rt_send(bus, &message, NULL));
    }
    struct kdbus_rt_message *message;
    while (kdbus_rt_recv(other, KDBUS_RT_RECV_PRIORITY, INT64_MAX, 0, &message) == 0)
        print_and_free("by priority", message);
    check(other, "byebye", kdbus_rt_byebye(other));
}

int main(void)
{
    if (kdbus_rt_abi_version() != KDBUS_RT_ABI_VERSION) {
        fprintf(stderr, "built for another libkdbus_rt than %s\n", kdbus_rt_version());
        return 1;
    }
    struct kdbus_rt_bus *bus;
    check(NULL, "connect", kdbus_rt_connect(NULL, NULL, &bus));
    check(bus, "wait for " NAME, kdbus_rt_name_wait(bus, NAME, kdbus_rt_after_ms(30000), NULL));
    check(bus, "subscribe", kdbus_rt_subscribe(bus, TOPIC, NULL));
    calls(bus);
    cancelled_call(bus);
    memory(bus);
    signals(bus);
    priorities(bus);
    struct kdbus_rt_message *reply;
    check(bus, "stop", call(bus, "stop", 30000, &reply));
    kdbus_rt_message_free(reply);
    kdbus_rt_close(bus);
    return 0;
}
