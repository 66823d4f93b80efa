/* Rank 1 (rank 0 of a single one) calls MPI_Abort with 3 while all others wait for a message that
 * never comes: the launcher has to end them and to report 3 as it does for a bare program. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank, size, never;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int aborter = size > 1 ? 1 : 0;

    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == aborter) {
        printf("rank %d aborts with 3\n", rank);
        fflush(stdout);
        MPI_Abort(MPI_COMM_WORLD, 3);
    }
    MPI_Recv(&never, 1, MPI_INT, aborter, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    printf("rank %d went on after the abort\n", rank);
    MPI_Finalize();
    return 0;
}
