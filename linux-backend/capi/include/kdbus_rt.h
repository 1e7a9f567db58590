// kdbus-rt: the client for C.
//
// Made by cbindgen from linux-backend/capi; do not edit. docs/c-api.md shows how to use it.
//
// Results: 0 or more is success, a negative number is -errno. kdbus_rt_error gives the text to it.
//
// Pointers: each has to be NULL or lead to what its function says, aligned and initialised unless it is written
// to only. NULL where it is not allowed is -EINVAL, except where a function says otherwise. Texts end with a NUL.
// What a pointer leads to is not needed any more when the function has returned. Room for results must not
// overlap anything else that is passed, and is written on success only, but for message and handle pointers,
// which become NULL on failure.
//
// Handles and messages: a pointer to one comes from this library and is given back once, after which neither it
// nor what it gave out may be used. Messages may outlive their handle.
//
// Threads: a handle and its messages belong to one thread at a time. They may move to another, and different
// handles may be used at the same time. Never use them in a child after fork: connect there anew.
//
// Time: deadlines are nanoseconds of CLOCK_MONOTONIC; kdbus_rt_after_ms makes one.
//
// Memory: kdbus_rt_connect allocates; nothing after it does, but a send that needs more than `staging`.
//
// Failures of the library itself end the process with a message on standard error; nothing unwinds into C.


#ifndef KDBUS_RT_H
#define KDBUS_RT_H

#include <stddef.h>
#include <stdint.h>

// First number of the library's version.
#define KDBUS_RT_VERSION_MAJOR 0

// Second number of the library's version.
#define KDBUS_RT_VERSION_MINOR 1

// Third number of the library's version.
#define KDBUS_RT_VERSION_PATCH 0

// Version of the binary interface. Programs that were compiled against one number run with every library
// of that number; it is the number in the library's soname.
#define KDBUS_RT_ABI_VERSION 1

// Never: a deadline that does not come.
#define KDBUS_RT_FOREVER UINT64_MAX

// Option: messages may bring descriptors. Without it, they are refused to the sender; memfds come in any case.
#define KDBUS_RT_ACCEPT_FDS 1

// Option: queries about this connection give out what attach_send says and nothing else.
#define KDBUS_RT_ANONYMOUS 2

// Option: the pages of the pool are mapped when they are first used, not at connect. Saves memory and costs
// page faults.
#define KDBUS_RT_LAZY_POOL 4

// Places for messages that a handle has unless messages_max says otherwise.
#define KDBUS_RT_MESSAGES_DEFAULT 64

// Name flag: take the name over if its owner allows that (given).
#define KDBUS_RT_NAME_REPLACE 1

// Name flag: others may take the name over (given, reported).
#define KDBUS_RT_NAME_ALLOW_REPLACEMENT 2

// Name flag: wait if the name is taken (given, reported).
#define KDBUS_RT_NAME_QUEUE 4

// Name flag: waits for the name (reported).
#define KDBUS_RT_NAME_IN_QUEUE 8

// Name flag: an activator holds the name (reported).
#define KDBUS_RT_NAME_ACTIVATOR 16

// Name flag: owns the name (reported).
#define KDBUS_RT_NAME_PRIMARY 32

// Name flag: this very request acquired the name or a place in its queue (reported).
#define KDBUS_RT_NAME_ACQUIRED 64

// List flag: connections of which no name is listed.
#define KDBUS_RT_LIST_UNIQUE 1

// List flag: names that an ordinary connection owns.
#define KDBUS_RT_LIST_NAMES 2

// List flag: names that an activator holds.
#define KDBUS_RT_LIST_ACTIVATORS 4

// List flag: connections that wait for a name.
#define KDBUS_RT_LIST_QUEUED 8

// Bytes of the longest well-known name with its NUL.
#define KDBUS_RT_NAME_SIZE 256

// Rule: signals about `text`, a topic or a pattern ("org.example.*", "*").
#define KDBUS_RT_RULE_TOPIC 0

// Rule: signals whose filter has all bits of `mask`, in the size of the bus' filters.
#define KDBUS_RT_RULE_BLOOM 1

// Rule: signals of connection `id`.
#define KDBUS_RT_RULE_SENDER 2

// Rule: signals of whoever owns the name `text` when they are sent.
#define KDBUS_RT_RULE_SENDER_NAME 3

// Rule: signals sent to `id` alone, or to all with `id` KDBUS_RT_ANY.
#define KDBUS_RT_RULE_DESTINATION 4

// Rule: connection `id` appears, or any with KDBUS_RT_ANY.
#define KDBUS_RT_RULE_ID_ADD 5

// Rule: connection `id` vanishes, or any with KDBUS_RT_ANY.
#define KDBUS_RT_RULE_ID_REMOVE 6

// Rule: the name `text`, or any with NULL, gets its first owner.
#define KDBUS_RT_RULE_NAME_ADD 7

// Rule: the name `text`, or any with NULL, loses its last owner.
#define KDBUS_RT_RULE_NAME_REMOVE 8

// Rule: the name `text`, or any with NULL, moves to another connection.
#define KDBUS_RT_RULE_NAME_CHANGE 9

// Any connection, in a rule; everybody, as a destination.
#define KDBUS_RT_ANY UINT64_MAX

// Match flag: first remove all matches with the same cookie.
#define KDBUS_RT_MATCH_REPLACE 1

// Part of a payload: bytes, copied once.
#define KDBUS_RT_PART_BYTES 0

// Part of a payload: zeros, which take no room.
#define KDBUS_RT_PART_ZEROS 1

// Part of a payload: a range of a memfd, passed without a copy. It has to be sealed against shrinking, growing,
// writing and sealing.
#define KDBUS_RT_PART_MEMFD 2

// Message flag: the receiver's reply comes as a message of its own, or a notification says that it will not,
// until `reply_until`. kdbus_rt_call sets this by itself.
#define KDBUS_RT_EXPECT_REPLY 1

// Message flag: does not start a service. With only an activator behind the name, sending is -EADDRNOTAVAIL.
#define KDBUS_RT_NO_AUTO_START 2

// Error code of an answer: the call failed for a reason that has no code of its own.
#define KDBUS_RT_ERROR_FAILED 0

// Error code of an answer: the service has no such method.
#define KDBUS_RT_ERROR_UNKNOWN_METHOD 1

// Error code of an answer: the payload is not what the method takes.
#define KDBUS_RT_ERROR_INVALID 2

// Error code of an answer: what the call is about does not exist.
#define KDBUS_RT_ERROR_NOT_FOUND 3

// Error code of an answer: the caller may not do that.
#define KDBUS_RT_ERROR_DENIED 4

// Error code of an answer: not now; trying again later may work.
#define KDBUS_RT_ERROR_BUSY 5

// Error code of an answer: the service dropped the call unread.
#define KDBUS_RT_ERROR_DROPPED 6

// Receive flag: the most urgent message whose priority is at most `priority`, of equal ones the first. Without
// it, the message that arrived first, and `priority` does not count.
#define KDBUS_RT_RECV_PRIORITY 4

// Kind of a message: it wants nothing back.
#define KDBUS_RT_KIND_PLAIN 0

// Kind of a message: a call, whose sender waits for kdbus_rt_reply.
#define KDBUS_RT_KIND_CALL 1

// Kind of a message: the reply to one that was sent with KDBUS_RT_EXPECT_REPLY.
#define KDBUS_RT_KIND_REPLY 2

// Kind of a message: a signal.
#define KDBUS_RT_KIND_SIGNAL 3

// Kind of a message: an announcement of the bus itself; see kdbus_rt_message_notification.
#define KDBUS_RT_KIND_NOTIFICATION 4

// Announcement: a name got its first owner.
#define KDBUS_RT_NOTE_NAME_ADD 1

// Announcement: a name lost its last owner.
#define KDBUS_RT_NOTE_NAME_REMOVE 2

// Announcement: a name moved to another connection.
#define KDBUS_RT_NOTE_NAME_CHANGE 3

// Announcement: a connection appeared.
#define KDBUS_RT_NOTE_ID_ADD 4

// Announcement: a connection vanished.
#define KDBUS_RT_NOTE_ID_REMOVE 5

// Announcement: an awaited reply did not come in time.
#define KDBUS_RT_NOTE_REPLY_TIMEOUT 6

// Announcement: an awaited reply can never come.
#define KDBUS_RT_NOTE_REPLY_DEAD 7

// Metadata: times and the number of the message on its bus.
#define KDBUS_RT_ATTACH_TIMESTAMP 1

// Metadata: user and group ids.
#define KDBUS_RT_ATTACH_CREDS 2

// Metadata: process, thread and parent ids.
#define KDBUS_RT_ATTACH_PIDS 4

// Metadata: supplementary groups.
#define KDBUS_RT_ATTACH_AUXGROUPS 8

// Metadata: names held.
#define KDBUS_RT_ATTACH_NAMES 16

// Metadata: name of the thread.
#define KDBUS_RT_ATTACH_TID_COMM 32

// Metadata: name of the process.
#define KDBUS_RT_ATTACH_PID_COMM 64

// Metadata: path of the executable.
#define KDBUS_RT_ATTACH_EXE 128

// Metadata: command line.
#define KDBUS_RT_ATTACH_CMDLINE 256

// Metadata: control group.
#define KDBUS_RT_ATTACH_CGROUP 512

// Metadata: capability sets.
#define KDBUS_RT_ATTACH_CAPS 1024

// Metadata: security label.
#define KDBUS_RT_ATTACH_SECLABEL 2048

// Metadata: audit session and login user.
#define KDBUS_RT_ATTACH_AUDIT 4096

// Metadata: what the connection called itself.
#define KDBUS_RT_ATTACH_DESCRIPTION 8192

// Text: name of the thread.
#define KDBUS_RT_TEXT_THREAD 0

// Text: name of the process.
#define KDBUS_RT_TEXT_PROCESS 1

// Text: path of the executable.
#define KDBUS_RT_TEXT_EXE 2

// Text: first argument of the command line.
#define KDBUS_RT_TEXT_CMDLINE 3

// Text: control group.
#define KDBUS_RT_TEXT_CGROUP 4

// Text: security label.
#define KDBUS_RT_TEXT_SECLABEL 5

// Text: what the connection called itself.
#define KDBUS_RT_TEXT_DESCRIPTION 6

// Text: the name that the message was sent to. It is there without being asked for.
#define KDBUS_RT_TEXT_DESTINATION 7

// A connection to a bus.
struct kdbus_rt_bus;

// A received message. Its bytes lie in the receive pool of its connection and do not change; freeing the
// message gives them back.
struct kdbus_rt_message;

// How to connect. All zero is the default of everything.
struct kdbus_rt_options {
    // Bytes of the pool that messages are received into, a multiple of the page size. One sender can have a
    // sixth of it waiting, so that is the longest message. Default: 1 MiB.
    uint64_t pool_size;
    // Any of KDBUS_RT_ACCEPT_FDS, KDBUS_RT_ANONYMOUS and KDBUS_RT_LAZY_POOL.
    uint64_t flags;
    // Metadata to give out (KDBUS_RT_ATTACH_...). Default, unless KDBUS_RT_ANONYMOUS: credentials, process
    // ids, groups, names, name and path of the program, description.
    uint64_t attach_send;
    // Metadata to receive with each message (KDBUS_RT_ATTACH_...). Default: none; each costs the sender time.
    uint64_t attach_recv;
    // What the connection calls itself, for people: at most 63 bytes. Default, or NULL: nothing.
    const char *description;
    // Bytes set aside at connect for sending payloads too large for a packet. A larger one makes it grow when
    // it is sent. Default: 1 MiB.
    uint64_t staging;
    // Messages that can be held at a time, at most 65536; a receive or call beyond is -ENOBUFS and takes
    // nothing. Each place takes some hundred bytes. Default: KDBUS_RT_MESSAGES_DEFAULT.
    uint32_t messages_max;
    // 0.
    uint32_t reserved_word;
    // 0.
    uint64_t reserved[4];
};

// One line of a list: a connection with one of its names.
struct kdbus_rt_peer {
    // The connection.
    uint64_t id;
    // What it was made with: 1 accepts descriptors, 2 is an activator, 4 a policy holder, 8 a monitor.
    uint64_t flags;
    // How it stands to the name (KDBUS_RT_NAME_...); 0 without one.
    uint64_t name_flags;
    // The name with a NUL; empty without one.
    char name[KDBUS_RT_NAME_SIZE];
};

// One condition of a match. All zero but for `kind` and what it speaks of is valid.
struct kdbus_rt_rule {
    // KDBUS_RT_RULE_...
    uint32_t kind;
    // 0.
    uint32_t reserved;
    // A topic, a pattern or a name.
    const char *text;
    // A connection.
    uint64_t id;
    // Bits of a bloom filter.
    const void *mask;
    // Bytes at `mask`.
    size_t mask_len;
};

// A part of a payload, to send or received.
struct kdbus_rt_part {
    // KDBUS_RT_PART_BYTES, KDBUS_RT_PART_ZEROS or KDBUS_RT_PART_MEMFD.
    uint32_t kind;
    // The memfd. Received: it belongs to the message, or is -1 if it was taken or could not be installed.
    int fd;
    // The bytes. Received: they belong to the message.
    const void *data;
    // First byte of the memfd's range.
    uint64_t start;
    // Bytes of the part; of a memfd not 0.
    uint64_t size;
};

// A message to send. All zero but for one destination is valid. Whatever it points to has to stay as it is until
// the function returns, and is not needed any more after that.
//
// The destination is one of these: `name`; `id`; `name` and `id`, which sends only while that connection owns
// the name; `topic`, a signal to all who subscribed to it; `topic` and `id`, to that subscriber alone.
struct kdbus_rt_outgoing {
    // Well-known name of the receiver, or NULL.
    const char *name;
    // What a signal is about: "org.example.Mixer.level"; NULL for other messages.
    const char *topic;
    // Unique id of the receiver, or 0.
    uint64_t id;
    // How urgent it is: the lowest value is the most urgent.
    int64_t priority;
    // The sender's number for the message, below 2^63. 0: the next one of the connection. A signal has the hash
    // of its topic, and a call a number of its own.
    uint64_t cookie;
    // Cookie of the message that this one answers, 0 for none. `id` is who asked.
    uint64_t cookie_reply;
    // What kind of payload this is, by the sender's choice. 0: raw bytes.
    uint64_t payload_type;
    // Any of KDBUS_RT_EXPECT_REPLY and KDBUS_RT_NO_AUTO_START.
    uint64_t flags;
    // With KDBUS_RT_EXPECT_REPLY, the deadline of the reply.
    uint64_t reply_until;
    // The payload, or its first bytes if there are parts too.
    const void *payload;
    // Bytes at `payload`.
    size_t payload_len;
    // Further parts of the payload: at most 64 runs of bytes, a run of more than 2 MiB counts for each 2 MiB,
    // and 16 memfds.
    const struct kdbus_rt_part *parts;
    // Parts at `parts`.
    size_t part_count;
    // Descriptors to pass, at most 16; not in signals to all, and only to receivers that accept them. They stay
    // the caller's.
    const int *fds;
    // Descriptors at `fds`.
    size_t fd_count;
    // 0.
    uint64_t reserved[4];
};

// The fixed part of a message that waits.
struct kdbus_rt_head {
    // The sending connection; 0 is the bus itself.
    uint64_t sender;
    // The sender's number for the message.
    uint64_t cookie;
    // How urgent it is: the lowest value is the most urgent.
    int64_t priority;
    // KDBUS_RT_KIND_...
    uint32_t kind;
    // 0.
    uint32_t reserved;
};

// What the bus announces.
struct kdbus_rt_notification {
    // KDBUS_RT_NOTE_...
    uint32_t kind;
    // 0.
    uint32_t reserved;
    // The connection of an id; the former owner of a name, 0 if there was none.
    uint64_t old_id;
    // What the connection was made with, or how it held the name.
    uint64_t old_flags;
    // The new owner of a name, 0 if there is none; the connection that appeared.
    uint64_t new_id;
    // What the connection was made with, or how it holds the name.
    uint64_t new_flags;
    // Cookie of the call whose reply does not come.
    uint64_t cookie;
    // The name with a NUL; empty without one.
    char name[KDBUS_RT_NAME_SIZE];
};

// When a message was sent.
struct kdbus_rt_timestamp {
    // Number of the message on its bus; the same for every receiver.
    uint64_t seqnum;
    // Nanoseconds of CLOCK_MONOTONIC.
    uint64_t monotonic_ns;
    // Nanoseconds of CLOCK_REALTIME.
    uint64_t realtime_ns;
};

// User and group ids of a sender.
struct kdbus_rt_creds {
    // Real user.
    uint64_t uid;
    // Effective user.
    uint64_t euid;
    // Saved user.
    uint64_t suid;
    // File system user.
    uint64_t fsuid;
    // Real group.
    uint64_t gid;
    // Effective group.
    uint64_t egid;
    // Saved group.
    uint64_t sgid;
    // File system group.
    uint64_t fsgid;
};

// Process ids of a sender; 0 for one that cannot be seen from here.
struct kdbus_rt_pids {
    // Process.
    uint64_t pid;
    // Thread.
    uint64_t tid;
    // Parent process.
    uint64_t ppid;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of the library that is there at run time, as text: "0.1.0". Never NULL, never freed.
const char *kdbus_rt_version(void);

// The binary interface of the library that is there at run time: KDBUS_RT_ABI_VERSION when it was built.
uint32_t kdbus_rt_abi_version(void);

// What the last function that failed on this handle had to say: what happened, to what, what to do. After
// success the text stays as it was. With NULL: of the last function that failed in the calling thread without
// a handle, such as kdbus_rt_connect.
//
// Never NULL, never freed. It may change with the next function on the handle (or in the thread), and goes
// with the handle.
const char *kdbus_rt_error(const struct kdbus_rt_bus *bus);

// The code of the error with which a callee answered the last call that ended with -EREMOTEIO on this handle:
// 0 to 6 are the common ones (KDBUS_RT_ERROR_...), the others are the service's. Its text is part of
// kdbus_rt_error. 0 for NULL.
uint32_t kdbus_rt_remote_code(const struct kdbus_rt_bus *bus);

// Connects to a bus.
//
// `name` is a bus ("0-system"), an endpoint of one ("0-system/guests") or the absolute path of a node. NULL is
// the bus of the environment variable KDBUS_BUS, or the first one that exists of the user's own and the
// system's. `options` may be NULL; it and what it leads to are not needed after the call.
//
// On success `*bus` is a new handle, to be given to kdbus_rt_close; on failure it is NULL, and
// kdbus_rt_error(NULL) says more.
//
// Returns 0, -ENOENT if there is no such bus, -ESHUTDOWN if nobody serves it any more, -EACCES if it is not for
// this user, -EMFILE if the user has too many connections, -EINVAL for a NULL `bus`, a name or options that
// cannot be right, or another error of the system.
int kdbus_rt_connect(const char *name,
                     const struct kdbus_rt_options *options,
                     struct kdbus_rt_bus **bus);

// Ends the connection at once: its names pass on, who waits for its answers learns that there will be none,
// and what waited unread is gone. The handle must not be used any more. Messages that are still held stay
// readable until each is freed, and the memory of the pool until all are. NULL does nothing.
void kdbus_rt_close(struct kdbus_rt_bus *bus);

// Ends the connection only if no message waits, so that none is lost, and closes the handle then.
//
// Returns 0, and the handle must not be used any more; -EBUSY if messages wait or are held, or another error if
// the bus is gone: then the handle is still there and has to be closed.
int kdbus_rt_byebye(struct kdbus_rt_bus *bus);

// The connection's unique id; 0 for NULL.
uint64_t kdbus_rt_id(const struct kdbus_rt_bus *bus);

// A descriptor for poll and epoll, readable while the bus has something for this connection. It belongs to the
// handle: never read or close it. Functions that wait may take messages in and keep them, so receive until
// -EAGAIN before each poll.
//
// Returns it, or -EINVAL for NULL.
int kdbus_rt_fd(const struct kdbus_rt_bus *bus);

// Waits until a message can be received or `deadline` passes.
//
// Returns 0, -ETIMEDOUT, -EINTR after a signal, -ECONNRESET if the bus is gone, or -EINVAL for NULL.
int kdbus_rt_wait(struct kdbus_rt_bus *bus, uint64_t deadline);

// Broadcasts that were lost since the last call of this function because the pool or queue had no room. Whoever
// mirrors another program's state has to fetch it anew. 0 for NULL.
uint64_t kdbus_rt_lost(struct kdbus_rt_bus *bus);

// Now, on the clock of deadlines: nanoseconds of CLOCK_MONOTONIC.
uint64_t kdbus_rt_now(void);

// The deadline that is `ns` nanoseconds from now; KDBUS_RT_FOREVER if that is beyond the clock.
uint64_t kdbus_rt_after_ns(uint64_t ns);

// The deadline that is `ms` milliseconds from now; KDBUS_RT_FOREVER if that is beyond the clock.
uint64_t kdbus_rt_after_ms(uint64_t ms);

// Asks for a name. `flags` may have KDBUS_RT_NAME_REPLACE, KDBUS_RT_NAME_ALLOW_REPLACEMENT and
// KDBUS_RT_NAME_QUEUE. How the connection stands to the name then is written to `standing` unless that is NULL:
// with KDBUS_RT_NAME_PRIMARY it owns the name, with KDBUS_RT_NAME_IN_QUEUE it waits.
//
// Returns 0, also if it waits; -EEXIST if another owns the name, -EPERM if policy denies it, -E2BIG with too many
// names, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_name_acquire(struct kdbus_rt_bus *bus,
                          const char *name,
                          uint64_t flags,
                          uint64_t *standing);

// Gives a name up, or the place in its queue.
//
// Returns 0; -ESRCH if nobody owns it, -EADDRINUSE if others do, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_name_release(struct kdbus_rt_bus *bus, const char *name);

// Who owns a name, or holds it as an activator; the id is written to `owner` unless that is NULL.
//
// Returns 0; -ESRCH if nobody does, -EXFULL if the pool has no room for the answer, -ECONNRESET if the bus is
// gone, or -EINVAL.
int kdbus_rt_name_owner(struct kdbus_rt_bus *bus, const char *name, uint64_t *owner);

// Waits until somebody owns `name`, or holds it as an activator; the id is written to `owner` unless that is
// NULL. Messages that arrive meanwhile are kept for later receives.
//
// Returns 0; -ETIMEDOUT at the deadline, -EINTR after a signal, -ENOBUFS if more messages arrived than are kept,
// -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_name_wait(struct kdbus_rt_bus *bus,
                       const char *name,
                       uint64_t deadline,
                       uint64_t *owner);

// Lists connections and names as they are at this moment, in no order. `peers` has room for `capacity` lines and
// may be NULL with 0.
//
// Returns how many lines there are, of which the first `capacity` are written; -EXFULL if the pool has no room
// for the answer, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_list(struct kdbus_rt_bus *bus,
                  uint64_t flags,
                  struct kdbus_rt_peer *peers,
                  size_t capacity);

// Hears signals about `topic`: a topic ("org.example.Mixer.level"), all below a prefix ("org.example.Mixer.*"),
// or all ("*"). The cookie for kdbus_rt_match_remove is written to `cookie` unless that is NULL.
//
// Returns 0, -EMFILE with too many matches, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_subscribe(struct kdbus_rt_bus *bus,
                       const char *topic,
                       uint64_t *cookie);

// Hears what passes all of `count` rules, at most 32; without rules, everything. Rules for signals and rules for
// announcements of the bus exclude each other. `cookie` is for removing the match, and several may have the
// same. `flags` are 0 or KDBUS_RT_MATCH_REPLACE.
//
// Returns 0, -EMFILE with too many matches, -EDOM for a mask of another size than the bus' filters, -EMSGSIZE for
// too long rules, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_match_add(struct kdbus_rt_bus *bus,
                       uint64_t cookie,
                       uint64_t flags,
                       const struct kdbus_rt_rule *rules,
                       size_t count);

// Removes all matches with this cookie.
//
// Returns 0, -EBADSLT if there is none, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_match_remove(struct kdbus_rt_bus *bus, uint64_t cookie);

// Sends a message. Never waits: when it returns, the message is queued at its receiver, or at all of them. The
// payload is copied once. Its cookie is written to `cookie` unless that is NULL.
//
// Returns 0, also for a signal that nobody hears; -ESRCH if nobody owns the name, -ENXIO if there is no such
// connection, -ENOBUFS or -EXFULL if the receiver has no room now, -EPERM if policy denies it, -ECOMM if the
// receiver takes no descriptors, -EMSGSIZE, -EMFILE or -E2BIG if it has too many parts, descriptors or memfds,
// -ETXTBSY if a memfd is not sealed, -EBADF, -EDESTADDRREQ, -EINVAL, -EBADSLT if the reply is not awaited, or
// -ECONNRESET if the bus or the receiver is gone.
int kdbus_rt_send(struct kdbus_rt_bus *bus,
                  const struct kdbus_rt_outgoing *message,
                  uint64_t *cookie);

// As kdbus_rt_send, and waits for room at the receiver if there is none. Messages that arrive meanwhile are kept
// for later receives.
//
// Returns as kdbus_rt_send; -ETIMEDOUT if there was no room until `deadline`, -ENOBUFS if more messages arrived
// than are kept: receive some.
int kdbus_rt_send_when_room(struct kdbus_rt_bus *bus,
                            const struct kdbus_rt_outgoing *message,
                            uint64_t deadline,
                            uint64_t *cookie);

// Sends a call and waits for its answer, which passes all queued messages by. `cancel_fd` ends the wait as soon
// as it is readable; negative is none.
//
// On success `*reply` is the answer, to be given to kdbus_rt_message_free; on failure it is NULL. `reply` may be
// NULL, which frees the answer at once.
//
// Returns 0; -EREMOTEIO if the callee answered with an error: kdbus_rt_remote_code is its code and
// kdbus_rt_error its text; -ETIMEDOUT at the deadline, -ECANCELED through `cancel_fd`, -EINTR after a signal: in
// these three the callee may still carry the call out; -EPIPE if the callee is gone or dropped the call; -ENOBUFS
// if every place for a message is held; or as kdbus_rt_send.
int kdbus_rt_call(struct kdbus_rt_bus *bus,
                  const struct kdbus_rt_outgoing *message,
                  uint64_t deadline,
                  int cancel_fd,
                  struct kdbus_rt_message **reply);

// Answers a call, with the call's priority. `request` is still to be freed.
//
// Returns 0; -EBADSLT if the caller does not wait any more; or as kdbus_rt_send. kdbus_rt_error of the handle
// that received the request says more.
int kdbus_rt_reply(const struct kdbus_rt_message *request, const void *payload, size_t payload_len);

// Answers a call with what `reply` says of payload, parts, descriptors and payload type; its destination,
// cookie_reply and priority are taken from the request.
//
// Returns as kdbus_rt_reply; -EINVAL if `reply` has a destination.
int kdbus_rt_reply_with(const struct kdbus_rt_message *request, const struct kdbus_rt_outgoing *reply);

// Answers a call with an error: `code` for programs (KDBUS_RT_ERROR_..., or from 256 on the service's own), and
// `text` for people, of which at most 91 bytes are carried; NULL is none.
//
// Returns as kdbus_rt_reply.
int kdbus_rt_reply_error(const struct kdbus_rt_message *request,
                         uint32_t code,
                         const char *text);

// Makes a sealed memfd of `len` bytes, with one copy, to be sent as a part.
//
// Returns the descriptor, which is the caller's to close, or a negative error: -EINVAL for no bytes, or the
// system's; kdbus_rt_error(NULL) says more.
int kdbus_rt_memfd(const void *bytes, size_t len);

// Receives a message, and waits for one until `deadline`; 0 does not wait. `flags` are 0 or
// KDBUS_RT_RECV_PRIORITY. Taking a message that waits and has no descriptors is no system call.
//
// On success `*message` is the message, to be given to kdbus_rt_message_free; on failure it is NULL.
//
// Returns 0; -EAGAIN if there is none and `deadline` is 0; -ETIMEDOUT, -EINTR after a signal, -ENOBUFS if every
// place for a message is held, -ECONNRESET if the bus is gone, -EOPNOTSUPP, or -EINVAL.
int kdbus_rt_recv(struct kdbus_rt_bus *bus,
                  uint64_t flags,
                  int64_t priority,
                  uint64_t deadline,
                  struct kdbus_rt_message **message);

// What the message at the front is, which stays there.
//
// Returns 0, -EAGAIN if none waits, -ECONNRESET if the bus is gone, or -EINVAL.
int kdbus_rt_peek(struct kdbus_rt_bus *bus, struct kdbus_rt_head *head);

// Drops the message at the front unread. Who waits for its answer learns that there will be none.
//
// Returns as kdbus_rt_peek.
int kdbus_rt_drop(struct kdbus_rt_bus *bus);

// Gives a message back: its bytes to the pool, its descriptors to the system, its place to the handle. Nothing
// that it gave out may be used any more, but descriptors that were taken. NULL does nothing.
void kdbus_rt_message_free(struct kdbus_rt_message *message);

// What the message is: KDBUS_RT_KIND_... KDBUS_RT_KIND_PLAIN for NULL.
uint32_t kdbus_rt_message_kind(const struct kdbus_rt_message *message);

// The sending connection; 0 is the bus itself, or NULL.
uint64_t kdbus_rt_message_sender(const struct kdbus_rt_message *message);

// Where it was sent: a connection, 0 for a name alone, KDBUS_RT_ANY for everybody. 0 for NULL.
uint64_t kdbus_rt_message_destination(const struct kdbus_rt_message *message);

// The sender's number for the message; of a signal, the hash of its topic. 0 for NULL.
uint64_t kdbus_rt_message_cookie(const struct kdbus_rt_message *message);

// The cookie that it answers; 0 if it is no reply, or for NULL.
uint64_t kdbus_rt_message_cookie_reply(const struct kdbus_rt_message *message);

// Until when the caller waits; 0 if it is no call, or for NULL.
uint64_t kdbus_rt_message_deadline(const struct kdbus_rt_message *message);

// How urgent it is: the lowest value is the most urgent. 0 for NULL.
int64_t kdbus_rt_message_priority(const struct kdbus_rt_message *message);

// What kind of payload it has, by the sender's choice; 0 for NULL.
uint64_t kdbus_rt_message_payload_type(const struct kdbus_rt_message *message);

// Whether it is a signal about `topic`: 1 or 0. 0 too for NULL and for what is no topic.
int kdbus_rt_message_is_about(const struct kdbus_rt_message *message, const char *topic);

// The payload, if the sender gave it as bytes only; else the first run of bytes among its parts. Its length is
// written to `len`, which may be NULL. The bytes belong to the message and are only to be read; they are aligned
// to 8.
//
// Returns NULL without bytes, and for NULL.
const void *kdbus_rt_message_payload(const struct kdbus_rt_message *message,
                                     size_t *len);

// Bytes of the whole payload: runs of bytes, zeros and memfd ranges. 0 for NULL.
uint64_t kdbus_rt_message_payload_len(const struct kdbus_rt_message *message);

// The part of the payload at `index`, as it was sent. Costs a pass over the parts before it.
//
// Returns 0, -ENODATA behind the last one, or -EINVAL.
int kdbus_rt_message_part(const struct kdbus_rt_message *message, size_t index, struct kdbus_rt_part *part);

// How many descriptors were passed, whether or not they could be installed. 0 for NULL.
size_t kdbus_rt_message_fd_count(const struct kdbus_rt_message *message);

// Takes the passed descriptor at `index` out of the message.
//
// Returns the descriptor, which is the caller's to close; -ENODATA if there is none, if it was taken, or if it
// could not be installed here; or -EINVAL for NULL.
int kdbus_rt_message_take_fd(struct kdbus_rt_message *message,
                             size_t index);

// Takes the memfd at `index` among the memfds of the payload out of the message.
//
// Returns as kdbus_rt_message_take_fd.
int kdbus_rt_message_take_memfd(struct kdbus_rt_message *message, size_t index);

// What the bus announces, if the message is KDBUS_RT_KIND_NOTIFICATION.
//
// Returns 0, -ENODATA if it is none, or -EINVAL.
int kdbus_rt_message_notification(const struct kdbus_rt_message *message,
                                  struct kdbus_rt_notification *notification);

// When the message was sent. Needs KDBUS_RT_ATTACH_TIMESTAMP.
//
// Returns 0, -ENODATA if the message has it not, or -EINVAL.
int kdbus_rt_message_timestamp(const struct kdbus_rt_message *message, struct kdbus_rt_timestamp *timestamp);

// User and group ids of the sender. Needs KDBUS_RT_ATTACH_CREDS.
//
// Returns as kdbus_rt_message_timestamp.
int kdbus_rt_message_creds(const struct kdbus_rt_message *message, struct kdbus_rt_creds *creds);

// Process ids of the sender. Needs KDBUS_RT_ATTACH_PIDS.
//
// Returns as kdbus_rt_message_timestamp.
int kdbus_rt_message_pids(const struct kdbus_rt_message *message, struct kdbus_rt_pids *pids);

// Copies a text about the sender (KDBUS_RT_TEXT_...) into `buffer` of `size` bytes, cut if it does not fit, with a
// NUL unless `size` is 0; `buffer` may be NULL then. Texts come from programs and file names: nothing makes them
// UTF-8.
//
// Returns the bytes of the whole text without its NUL, like snprintf; -ENODATA if the message has it not, or
// -EINVAL.
int kdbus_rt_message_text(const struct kdbus_rt_message *message,
                          uint32_t text,
                          char *buffer,
                          size_t size);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KDBUS_RT_H */
