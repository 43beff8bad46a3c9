/* by_handle PATH              prints the file's handle (name_to_handle_at(2)): its type, and its bytes
 * by_handle MOUNT TYPE HEX    prints the content of the file with that handle, on the file system of MOUNT; or why not */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct file_handle *handle = calloc(1, sizeof *handle + MAX_HANDLE_SZ);
    char content[4096];
    int mount, file;
    ssize_t length;

    if (argc == 2) {
        handle->handle_bytes = MAX_HANDLE_SZ;
        if (name_to_handle_at(AT_FDCWD, argv[1], handle, &mount, 0))
            return 1;
        printf("%d ", handle->handle_type);
        for (unsigned i = 0; i < handle->handle_bytes; i++)
            printf("%02x", handle->f_handle[i]);
        return 0;
    }
    if (argc != 4)
        return 1;
    handle->handle_type = atoi(argv[2]);
    handle->handle_bytes = strlen(argv[3]) / 2;
    for (unsigned i = 0; i < handle->handle_bytes && i < MAX_HANDLE_SZ; i++)
        sscanf(argv[3] + 2 * i, "%2hhx", &handle->f_handle[i]);
    file = open_by_handle_at(open(argv[1], O_RDONLY), handle, O_RDONLY);
    length = file < 0 ? -1 : read(file, content, sizeof content);
    if (length < 0)
        puts(strerror(errno));
    else
        fwrite(content, 1, length, stdout);
    return 0;
}
