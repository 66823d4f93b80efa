/* Measures messages between the first and the last rank: "SIZE B  LAT us  BW MB/s" per size, where
 * LAT is half the median round trip and BW is SIZE / LAT. Contents are checked in both directions.
 *
 *   pingpong                 8 B, 64 KiB, 1 MiB and 4 MiB, 1000 round trips at 8 B, fewer of the rest
 *   pingpong REPEATS         the same, scaled: REPEATS at 8 B
 *   pingpong REPEATS SIZE…   these sizes in bytes, exactly REPEATS round trips of each
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { WARM_UP = 3 };

static void fill(unsigned char *buffer, long size, unsigned seed) {
    for (long i = 0; i < size; i++)
        buffer[i] = (unsigned char)(i * 7 + (i >> 8) + seed);
}

static int matches(const unsigned char *buffer, long size, unsigned seed) {
    for (long i = 0; i < size; i++)
        if (buffer[i] != (unsigned char)(i * 7 + (i >> 8) + seed))
            return 0;
    return 1;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Both ends call this; returns 0 when the last rank's or our own received contents were wrong. */
static int measure(int rank, int peer, long size, int repeats) {
    unsigned char *out = malloc(size), *in = malloc(size);
    double *trips = malloc(repeats * sizeof *trips);
    if (!out || !in || !trips)
        MPI_Abort(MPI_COMM_WORLD, 1);
    fill(out, size, rank);
    fill(in, size, rank + 1000); /* what must be overwritten */

    for (int i = -WARM_UP; i < repeats; i++) {
        double start = MPI_Wtime();
        if (rank == 0) {
            MPI_Send(out, size, MPI_BYTE, peer, 0, MPI_COMM_WORLD);
            MPI_Recv(in, size, MPI_BYTE, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        } else {
            MPI_Recv(in, size, MPI_BYTE, peer, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            MPI_Send(out, size, MPI_BYTE, peer, 0, MPI_COMM_WORLD);
        }
        if (i >= 0)
            trips[i] = MPI_Wtime() - start;
    }

    int mine = matches(in, size, peer), theirs;
    MPI_Sendrecv(&mine, 1, MPI_INT, peer, 1, &theirs, 1, MPI_INT, peer, 1, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    if (rank == 0) {
        qsort(trips, repeats, sizeof *trips, by_value);
        double microseconds = trips[repeats / 2] / 2 * 1e6;
        if (mine && theirs)
            printf("%ld B  %.2f us  %.1f MB/s\n", size, microseconds, size / microseconds);
        else
            printf("%ld B  WRONG contents\n", size);
        fflush(stdout);
    }
    free(out);
    free(in);
    free(trips);
    return mine && theirs;
}

/* The ranks in between sleep until the two ends are through: polling in a barrier, they would take
 * the CPU from the ends where there are more ranks than cores. */
static void meet(void) {
    MPI_Request request;
    int done = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    while (MPI_Test(&request, &done, MPI_STATUS_IGNORE), !done)
        usleep(1000);
}

int main(int argc, char **argv) {
    static const struct { long size; int share; } standard[] = {
        {8, 1}, {64 << 10, 4}, {1 << 20, 20}, {4 << 20, 50}};
    int rank, size, failed = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int repeats = argc > 1 ? atoi(argv[1]) : 1000;
    if (repeats < 1)
        repeats = 1;

    if (size == 1) {
        printf("pingpong: one rank has nobody to play with, nothing measured\n");
    } else if (rank == 0 || rank == size - 1) {
        int peer = rank == 0 ? size - 1 : 0;
        for (int i = 2; i < argc; i++)
            failed |= !measure(rank, peer, atol(argv[i]), repeats);
        for (int i = 0; argc < 3 && i < 4; i++) {
            int scaled = repeats / standard[i].share;
            failed |= !measure(rank, peer, standard[i].size, scaled < 1 ? 1 : scaled);
        }
    }
    meet();
    MPI_Finalize();
    return failed;
}
