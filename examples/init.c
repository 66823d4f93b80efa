/* Rank 0 prints when the last rank came out of MPI_Init: "init of N ranks at NANOSECONDS", counted as
 * clock_gettime(CLOCK_REALTIME) does, so that whoever started the job knows how long that took. */
#include <mpi.h>
#include <stdio.h>
#include <time.h>

int main(int argc, char **argv) {
    struct timespec now;
    long long mine, last = 0;
    int rank, size;

    MPI_Init(&argc, &argv);
    clock_gettime(CLOCK_REALTIME, &now);
    mine = now.tv_sec * 1000000000LL + now.tv_nsec;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Reduce(&mine, &last, 1, MPI_LONG_LONG, MPI_MAX, 0, MPI_COMM_WORLD);
    if (rank == 0)
        printf("init of %d ranks at %lld\n", size, last);
    MPI_Finalize();
    return 0;
}
