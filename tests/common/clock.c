// A monotonic clock that can be set, for tests/timer.rs: preloaded into a process (ld.so(8)), it
// stands before the C library's clock, which is what std's `Instant` reads. Where the clock stands
// is in a file that the test writes and this maps: two numbers of nanoseconds. The first is added
// to the true clock; the second, if it is not zero, is the time, and it stands still.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *set;

__attribute__((constructor)) static void map(void) {
    const char *path = getenv("SMOL_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *words = file < 0 ? MAP_FAILED : mmap(0, 16, PROT_READ, MAP_SHARED, file, 0);
    set = words == MAP_FAILED ? 0 : words;
    if (file >= 0) close(file);
}

static long (*the_syscall(void))(long, ...) {
    static long (*real)(long, ...);
    if (!real) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    return real;
}

// The thread that ends a test which hangs must have the true time.
static int is_watchdog(void) {
    static __thread int known;
    if (!known) {
        char name[16] = "";
        prctl(PR_GET_NAME, name);
        known = strcmp(name, "watchdog") ? 1 : 2;
    }
    return known == 2;
}

static int64_t nanos(const struct timespec *time) {
    return time->tv_sec * 1000000000LL + time->tv_nsec;
}

static void put(struct timespec *time, __int128 nanos) {
    time->tv_sec = nanos / 1000000000;
    time->tv_nsec = nanos % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    long result = the_syscall()(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_MONOTONIC && set && !is_watchdog())
        put(time, set[1] ? set[1] : (__int128)nanos(time) + set[0]);
    return result;
}

// std waits until a moment of this clock: the kernel must be told the moment of its own.
long syscall(long number, ...) {
    va_list list;
    long a[6];
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec until, true_now, now;
    int wait = number == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
    if (wait && !(a[1] & FUTEX_CLOCK_REALTIME) && a[3] && set && !is_watchdog()) {
        the_syscall()(SYS_clock_gettime, CLOCK_MONOTONIC, &true_now);
        clock_gettime(CLOCK_MONOTONIC, &now);
        const struct timespec *asked = (const struct timespec *)a[3];
        __int128 left = (__int128)asked->tv_sec * 1000000000 + asked->tv_nsec - nanos(&now);
        put(&until, nanos(&true_now) + (left > 0 ? left : 0));
        a[3] = (long)&until;
    }
    return the_syscall()(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
