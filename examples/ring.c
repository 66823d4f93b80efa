/* Sends a token once round all ranks; each adds its rank to it. Rank 0 checks the sum and prints
 * "ring of N ranks: sum S correct", or exits 1. Every rank talks to two neighbours, so a single rank
 * that did not start or cannot be reached stops it. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv) {
    int rank, size, failed = 0;
    long token = 0;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    int next = (rank + 1) % size, previous = (rank + size - 1) % size;

    if (rank == 0) {
        /* The receive is posted first: with a single rank the message goes to ourselves. */
        long sum = -1, expected = (long)size * (size - 1) / 2;
        MPI_Request request;
        MPI_Irecv(&sum, 1, MPI_LONG, previous, 0, MPI_COMM_WORLD, &request);
        MPI_Send(&token, 1, MPI_LONG, next, 0, MPI_COMM_WORLD);
        MPI_Wait(&request, MPI_STATUS_IGNORE);
        failed = sum != expected;
        if (failed)
            printf("ring of %d ranks: sum %ld WRONG, expected %ld\n", size, sum, expected);
        else
            printf("ring of %d ranks: sum %ld correct\n", size, sum);
    } else {
        MPI_Recv(&token, 1, MPI_LONG, previous, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        token += rank;
        MPI_Send(&token, 1, MPI_LONG, next, 0, MPI_COMM_WORLD);
    }
    MPI_Finalize();
    return failed;
}
