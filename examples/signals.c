/* Prints the name of every signal that reaches it, "rank R: TERM", among TERM, INT, USR1, USR2 and
 * CONT. Begins with "rank R: ready"; exits 0 after USR2, or when SECONDS (first argument, 30 if
 * absent) have passed. hydra forwards USR1 but dies of USR2: send that to the ranks themselves.
 * With -DNO_MPI it needs no MPI and takes its rank from the environment. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#ifdef NO_MPI
static int start(int *argc, char ***argv) {
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK",
                                        "SLURM_PROCID"};
    (void)argc, (void)argv;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]))
            return atoi(getenv(names[i]));
    return 0;
}
static void finish(void) {}
#else
#include <mpi.h>
static int start(int *argc, char ***argv) {
    int rank;
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}
static void finish(void) { MPI_Finalize(); }
#endif

static const struct { int number; const char *name; } signals[] = {
    {SIGTERM, "TERM"}, {SIGINT, "INT"}, {SIGUSR1, "USR1"}, {SIGUSR2, "USR2"}, {SIGCONT, "CONT"}};
enum { SIGNALS = sizeof signals / sizeof *signals };

int main(int argc, char **argv) {
    /* Blocked and fetched rather than handled: printf is not safe in a handler. Blocked before
     * MPI_Init, so that the threads of the MPI library inherit it and take none of them. */
    sigset_t wanted;
    sigemptyset(&wanted);
    for (int i = 0; i < SIGNALS; i++)
        sigaddset(&wanted, signals[i].number);
    sigprocmask(SIG_BLOCK, &wanted, NULL);

    int rank = start(&argc, &argv);
    time_t end = time(NULL) + (argc > 1 ? atoi(argv[1]) : 30);
    printf("rank %d: ready\n", rank);
    fflush(stdout);

    int got = 0;
    while (got != SIGUSR2 && time(NULL) < end) {
        struct timespec tick = {0, 200 * 1000 * 1000};
        got = sigtimedwait(&wanted, NULL, &tick);
        for (int i = 0; i < SIGNALS; i++)
            if (signals[i].number == got)
                printf("rank %d: %s\n", rank, signals[i].name);
        fflush(stdout);
    }
    finish();
    return 0;
}
