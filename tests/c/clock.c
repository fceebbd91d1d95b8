/* Other clocks for the one process that this is preloaded into: the system's, and what the file $CLOCK says besides, in
 * nanoseconds, which may change at any time: of the wall clock, and of the one that only goes on. Timed waits that count
 * by the wall clock end as the kernel would end them. Of jumps of the other one the kernel knows nothing.
 * Who waits for so long and then looks at the clock, as tokio does, sees them once something wakes it. They are not for
 * who waits until a time by that clock (Condvar and park_timeout of Rust's std, pthread_cond_clockwait): it would wait for
 * longer, by all that the clock is ahead. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

/* A wait notices after so long that the clock was set. Each thread of librdkafka wakes up so often: ten times as many wake-ups
 * of some 200 threads left two cores no time for the servers. */
static const int64_t SECOND = 1000000000, SLICE = 100000000;
enum { WALL, STEADY, CLOCKS };
static volatile int64_t *ahead;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK"), O_RDONLY | O_CLOEXEC);
    void *map = mmap(NULL, CLOCKS * sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) abort();
    close(file);
    ahead = map;
}

static int64_t really(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
    return now.tv_sec * SECOND + now.tv_nsec;
}

static struct timespec timespec_of(int64_t nanos) {
    int64_t rest = (nanos % SECOND + SECOND) % SECOND;
    return (struct timespec){.tv_sec = (nanos - rest) / SECOND, .tv_nsec = rest};
}

/* What runs before the constructor sees the system's clock. */
static int64_t now(void) { return really() + (ahead ? ahead[WALL] : 0); }

int clock_gettime(clockid_t id, struct timespec *time) {
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) {
        *time = timespec_of(now());
        return 0;
    }
    int failed = syscall(SYS_clock_gettime, id, time);
    if (!failed && id == CLOCK_MONOTONIC && ahead) *time = timespec_of(time->tv_sec * SECOND + time->tv_nsec + ahead[STEADY]);
    return failed;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
    (void)zone;
    struct timespec nanos = timespec_of(now());
    *time = (struct timeval){.tv_sec = nanos.tv_sec, .tv_usec = nanos.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *copy) {
    time_t seconds = timespec_of(now()).tv_sec;
    if (copy) *copy = seconds;
    return seconds;
}

/* librdkafka waits by this one. A clock that is set back meanwhile makes the wait longer. */
int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until) {
    static int (*wait)(cnd_t *, mtx_t *, const struct timespec *);
    if (!wait) wait = (int (*)(cnd_t *, mtx_t *, const struct timespec *))dlsym(RTLD_NEXT, "cnd_timedwait");
    for (;;) {
        int64_t left = until->tv_sec * SECOND + until->tv_nsec - now();
        if (left <= 0) return thrd_timedout;
        struct timespec slice = timespec_of(really() + (left < SLICE ? left : SLICE));
        int ended = wait(condition, mutex, &slice);
        if (ended != thrd_timedout) return ended;
    }
}
