/* descriptors: prints the number and the target of every open descriptor, a line each. */

#include <stdio.h>
#include <unistd.h>

int main(void)
{
    char path[64], target[512];
    ssize_t length;

    for (int number = 0; number < 65536; number++) {
        sprintf(path, "/proc/self/fd/%d", number);
        length = readlink(path, target, sizeof target);
        if (length >= 0)
            printf("%d %.*s\n", number, (int)length, target);
    }
    return 0;
}
