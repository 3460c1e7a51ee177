/* Threads that share the work of one call: OpenMP's, a pool that torch has started, or, in a build without OpenMP
 * (macOS), POSIX threads that live as long as the call. */
#ifndef THERMOOPT_TEAM_H
#define THERMOOPT_TEAM_H

#include <stdint.h>
#ifdef _OPENMP
#include <omp.h>
#elif !defined(_WIN32)
#include <pthread.h>
#endif

/* Takes parts of a call's work from `next` on, which all threads count up, until none is left. */
typedef void worker(const void *call, int64_t *next);

#if !defined(_OPENMP) && !defined(_WIN32)
enum { TEAM = 64 }; /* threads at most */

struct member {
    worker *work;
    const void *call;
    int64_t *next;
};

static void *join_in(void *given) {
    const struct member *member = given;
    member->work(member->call, member->next);
    return NULL;
}
#endif

/* Let at most `threads` threads work, the caller's among them; return when all of them are done. */
static void together(worker *work, const void *call, int threads) {
    int64_t next = 0;
    if (threads <= 1) {
        work(call, &next);
        return;
    }
#ifdef _OPENMP
    /* No num_threads clause: a team of another size than torch's makes libgomp rebuild the pool they share. */
#pragma omp parallel
    if (omp_get_thread_num() < threads) work(call, &next);
#elif defined(_WIN32)
    work(call, &next);
#else
    struct member member = {work, call, &next};
    pthread_t started[TEAM];
    int n = 0;
    while (n < threads - 1 && n < TEAM - 1 && !pthread_create(&started[n], NULL, join_in, &member)) n++;
    work(call, &next); /* all of it, should no thread have started */
    while (n > 0) pthread_join(started[--n], NULL);
#endif
}

#endif
