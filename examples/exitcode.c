/* One rank ends in a way of your choice, to compare what the launcher makes of it with a bare run.
 *
 *   exitcode RANK exit STATUS     all ranks finalize, then RANK exits with STATUS, the others with 0
 *   exitcode RANK quit STATUS     RANK exits with STATUS without MPI_Finalize
 *   exitcode RANK signal NUMBER   RANK kills itself with the signal
 *
 * After "quit" and "signal" the others wait SECONDS (a fourth argument, 5 if absent) for the launcher
 * to end them, then exit 0: not every launcher does (hydra lets them run on after a plain exit).
 * With SECONDS, rank 0 says when all ranks are there: a job that loses one in MPI_Init is another case. */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int rank;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc < 4 || (strcmp(argv[2], "exit") && strcmp(argv[2], "quit") && strcmp(argv[2], "signal"))) {
        if (rank == 0)
            fprintf(stderr, "usage: exitcode RANK exit|quit|signal NUMBER [SECONDS]\n");
        MPI_Finalize();
        return 2;
    }
    int chosen = rank == atoi(argv[1]), number = atoi(argv[3]);
    int seconds = argc > 4 ? atoi(argv[4]) : 5;

    MPI_Barrier(MPI_COMM_WORLD);
    if (argc > 4 && rank == 0) {
        puts("all ranks are there");
        fflush(stdout);
    }
    if (strcmp(argv[2], "exit") == 0) {
        MPI_Finalize();
        return chosen ? number : 0;
    }
    if (chosen && strcmp(argv[2], "quit") == 0)
        _exit(number);
    if (chosen) {
        /* Open MPI prints a backtrace in its own handlers; the program's death is wanted here. */
        signal(number, SIG_DFL);
        raise(number);
    }
    sleep(seconds);
    _exit(0);
}
