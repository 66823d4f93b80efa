/* Links MPI and does nothing with it: what a rank costs before MPI_Init. With one argument it waits until its
 * standard input ends. */
#include <mpi.h>
#include <stddef.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char byte;
    if (argc == 2) {
        while (read(0, &byte, 1) > 0) {
        }
    }
    return argc > 2 ? MPI_Init(&argc, &argv) : 0;
}
