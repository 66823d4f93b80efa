// ring.c through the C++ bindings, which MPI 3 removed and Open MPI 4 and MPICH still have. Where an MPI comes
// without them it says so when it is compiled, and is left out.
#include <mpi.h>

#include <fstream>
#include <iostream>
#include <set>
#include <string>

// The MPI libraries that are mapped, as /proc/self/maps has them.
static void whose() {
    std::ifstream maps("/proc/self/maps");
    std::set<std::string> seen;
    for (std::string line; std::getline(maps, line);) {
        if (line.find("libmpi.so") == std::string::npos && line.find("libmpich.so") == std::string::npos) {
            continue;
        }
        std::string::size_type at = 0;
        for (int field = 0; field < 3; field++) {
            at = line.find(' ', at) + 1;
        }
        if (seen.insert(line.substr(at)).second) {
            std::cout << "maps: " << line.substr(at) << std::endl;
        }
    }
}

int main(int argc, char **argv) {
    MPI::Init(argc, argv);
    int rank = MPI::COMM_WORLD.Get_rank(), size = MPI::COMM_WORLD.Get_size();
    int next = (rank + 1) % size, previous = (rank + size - 1) % size;
    if (rank == 0) {
        whose();
        int token = 0, total = -1, expected = size * (size - 1) / 2;
        MPI::Request request = MPI::COMM_WORLD.Irecv(&total, 1, MPI::INT, previous, 0);
        MPI::COMM_WORLD.Send(&token, 1, MPI::INT, next, 0);
        request.Wait();
        if (total != expected) {
            std::cout << "ring of " << size << " ranks: sum " << total << " WRONG, expected " << expected << std::endl;
            MPI::COMM_WORLD.Abort(1);
        }
        std::cout << "ring of " << size << " ranks: sum " << total << " correct" << std::endl;
    } else {
        int token;
        MPI::COMM_WORLD.Recv(&token, 1, MPI::INT, previous, 0);
        token += rank;
        MPI::COMM_WORLD.Send(&token, 1, MPI::INT, next, 0);
    }
    MPI::Finalize();
    return 0;
}
