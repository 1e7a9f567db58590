// What the service and the client of this example agree upon.
#ifndef COMMON_H
#define COMMON_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kdbus_rt.h>

#define NAME "org.example.Echo"
#define TOPIC "org.example.Echo.served"

// Ends the program if `result` is an error, with the text that the library has for it.
static inline int check(const struct kdbus_rt_bus *bus, const char *doing, int result)
{
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", doing, kdbus_rt_error(bus));
        exit(1);
    }
    return result;
}

// Whether a message's payload is this text.
static inline int is_text(const struct kdbus_rt_message *message, const char *text)
{
    size_t len;
    const void *payload = kdbus_rt_message_payload(message, &len);
    return len == strlen(text) && (len == 0 || memcmp(payload, text, len) == 0);
}

#endif
