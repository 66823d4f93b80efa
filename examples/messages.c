/* Messages between the first and the last rank, by the definitions of the OSU Micro-Benchmarks: the twin of
 * `hpc-bench-mpi pt2pt` (bench/programs), written for itself, so that each can be judged by the other.
 *
 *   messages [SCALE [SIZE…]]      sizes in bytes; default 1, 8, 64 KiB, 1 MiB and 4 MiB
 *
 * latency: half of a round trip. bw: windows of 64 messages, and a short answer to each window. bibw: windows
 * of 64 both ways. Rounds (and rounds before the clock runs): latency 10000 (100), bw and bibw 100 (10); above
 * 8 KiB 1000 (10) and 20 (2); all of them times SCALE. MB are 10^6 bytes. Output: "RESULT NAME SIZE VALUE UNIT"
 * per result, "WRONG …" and status 1 where contents are wrong, "END" last.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { WINDOW = 64, LARGE = 8192, MESSAGE = 100, ANSWER = 101 };

static MPI_Comm ends;
static int me; /* 0 or 1 among the two ends */
static double scale = 1;
static unsigned char *out, *in;
static MPI_Request requests[2 * WINDOW];
static MPI_Status statuses[WINDOW];

static unsigned char pattern(long i, int sender) {
    return (unsigned char)(i * 13 + (i >> 7) + 97 * sender + 5);
}

static void roundtrip(int size) {
    if (me == 0) {
        MPI_Send(out, size, MPI_CHAR, 1, MESSAGE, ends);
        MPI_Recv(in, size, MPI_CHAR, 1, MESSAGE, ends, MPI_STATUS_IGNORE);
    } else {
        MPI_Recv(in, size, MPI_CHAR, 0, MESSAGE, ends, MPI_STATUS_IGNORE);
        MPI_Send(out, size, MPI_CHAR, 0, MESSAGE, ends);
    }
}

static void one_way(int size) {
    char answer = 0;
    if (me == 0) {
        for (int i = 0; i < WINDOW; i++)
            MPI_Isend(out, size, MPI_CHAR, 1, MESSAGE, ends, &requests[i]);
        MPI_Waitall(WINDOW, requests, statuses);
        MPI_Recv(&answer, 1, MPI_CHAR, 1, ANSWER, ends, MPI_STATUS_IGNORE);
    } else {
        for (int i = 0; i < WINDOW; i++)
            MPI_Irecv(in, size, MPI_CHAR, 0, MESSAGE, ends, &requests[i]);
        MPI_Waitall(WINDOW, requests, statuses);
        MPI_Send(&answer, 1, MPI_CHAR, 0, ANSWER, ends);
    }
}

static void both_ways(int size) {
    for (int i = 0; i < WINDOW; i++)
        MPI_Irecv(in, size, MPI_CHAR, 1 - me, MESSAGE, ends, &requests[i]);
    for (int i = 0; i < WINDOW; i++)
        MPI_Isend(out, size, MPI_CHAR, 1 - me, MESSAGE, ends, &requests[WINDOW + i]);
    MPI_Waitall(WINDOW, requests + WINDOW, statuses);
    MPI_Waitall(WINDOW, requests, statuses);
}

static int scaled(int count) {
    double rounds = count * scale + 0.5;
    return rounds < 1 ? 1 : (int)rounds;
}

/* Mean seconds of a round, each timed by itself. */
static double timed(void (*round)(int), int size, int warm_up, int rounds) {
    double total = 0;
    for (int i = 0; i < warm_up; i++)
        round(size);
    for (int i = 0; i < rounds; i++) {
        double start = MPI_Wtime();
        round(size);
        total += MPI_Wtime() - start;
    }
    return total / rounds;
}

static const struct {
    const char *name, *unit;
    void (*round)(int);
    int small, small_warm_up, large, large_warm_up, is_received_by_both;
    double bytes; /* per round, in sizes; 0: a latency */
} benchmarks[] = {
    {"latency", "us", roundtrip, 10000, 100, 1000, 10, 1, 0},
    {"bw", "MB/s", one_way, 100, 10, 20, 2, 0, WINDOW},
    {"bibw", "MB/s", both_ways, 100, 10, 20, 2, 1, 2 * WINDOW},
};

static void measure(int which, int size) {
    for (long i = 0; i < size; i++) {
        out[i] = pattern(i, me);
        in[i] = (unsigned char)~pattern(i, 1 - me);
    }
    int large = size > LARGE;
    int rounds = scaled(large ? benchmarks[which].large : benchmarks[which].small);
    int warm_up = scaled(large ? benchmarks[which].large_warm_up : benchmarks[which].small_warm_up);
    MPI_Barrier(ends);
    double seconds = timed(benchmarks[which].round, size, warm_up, rounds);
    if (me == 1 || benchmarks[which].is_received_by_both)
        for (long i = 0; i < size; i++)
            if (in[i] != pattern(i, 1 - me)) {
                printf("WRONG %s %d end %d: byte %ld\n", benchmarks[which].name, size, me, i);
                fflush(stdout);
                MPI_Abort(MPI_COMM_WORLD, 1);
            }
    MPI_Barrier(ends);
    if (me == 0) {
        double bytes = benchmarks[which].bytes * size;
        double value = bytes > 0 ? bytes / 1e6 / seconds : seconds * 1e6 / 2;
        printf("RESULT %s %d %.6g %s\n", benchmarks[which].name, size, value, benchmarks[which].unit);
        fflush(stdout);
    }
}

/* The ranks in between sleep: polling in a barrier, they would take the CPU from the two ends. */
static void meet(void) {
    MPI_Request request;
    int done = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    while (MPI_Test(&request, &done, MPI_STATUS_IGNORE), !done)
        usleep(1000);
}

int main(int argc, char **argv) {
    static const int standard[] = {1, 8, 64 << 10, 1 << 20, 4 << 20};
    int sizes[64], count = 0, most = 1, rank, ranks;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (argc > 1)
        scale = atof(argv[1]);
    for (int i = 2; i < argc && count < 64; i++)
        sizes[count++] = atoi(argv[i]);
    for (int i = 0; argc < 3 && i < 5; i++)
        sizes[count++] = standard[i];
    for (int i = 0; i < count; i++) {
        if (sizes[i] < 1)
            scale = 0;
        most = sizes[i] > most ? sizes[i] : most;
    }
    if (ranks < 2 || !(scale > 0)) {
        if (rank == 0)
            fprintf(stderr, "messages: needs 2 ranks, a SCALE above 0 and SIZEs of at least 1 byte; nothing measured\n");
        MPI_Finalize();
        return 2;
    }

    MPI_Comm_split(MPI_COMM_WORLD, rank == 0 || rank == ranks - 1 ? 0 : MPI_UNDEFINED, rank, &ends);
    if (ends != MPI_COMM_NULL) {
        long page = sysconf(_SC_PAGESIZE);
        MPI_Comm_rank(ends, &me);
        if (posix_memalign((void **)&out, page, most) || posix_memalign((void **)&in, page, most))
            MPI_Abort(MPI_COMM_WORLD, 1);
        for (int which = 0; which < 3; which++)
            for (int i = 0; i < count; i++)
                measure(which, sizes[i]);
        if (me == 0)
            printf("END\n");
        free(out);
        free(in);
        MPI_Comm_free(&ends);
    }
    meet();
    MPI_Finalize();
    return 0;
}
