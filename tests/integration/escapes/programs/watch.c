/* watch DONE SEEN: looks at every process that turns up in this PID namespace until the file DONE is there, and writes to the
 * file SEEN what it could get at, a line each, once:
 *
 *     PID COMM EXE what detail
 *
 * COMM is the process's name after the look, EXE what its program is (? where that is hidden). */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *seen;
static char *lines[20000];
static int count;

static ssize_t read_whole(const char *path, char *into, size_t size)
{
    int file = open(path, O_RDONLY | O_NONBLOCK);
    ssize_t length = file < 0 ? -1 : read(file, into, size - 1);

    if (file >= 0)
        close(file);
    into[length > 0 ? length : 0] = 0;
    return length;
}

static void say(int pid, const char *format, ...)
{
    char path[64], comm[32], exe[256], text[1024], line[1400];
    va_list arguments;
    ssize_t length;

    sprintf(path, "/proc/%d/comm", pid);
    if (read_whole(path, comm, sizeof comm) <= 0)
        return;
    comm[strcspn(comm, "\n")] = 0;
    sprintf(path, "/proc/%d/exe", pid);
    length = readlink(path, exe, sizeof exe - 1);
    exe[length > 0 ? length : 0] = 0;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    snprintf(line, sizeof line, "%d %s %s %s\n", pid, comm, length > 0 ? exe : "?", text);
    for (int i = 0; i < count; i++)
        if (!strcmp(lines[i], line))
            return;
    if (count < 20000)
        lines[count++] = strdup(line);
    fputs(line, seen);
    fflush(seen);
}

static void look_at_descriptors(int pid)
{
    char path[300], target[256];
    struct dirent *entry;
    ssize_t length;
    DIR *folder;
    int file;

    sprintf(path, "/proc/%d/fd", pid);
    folder = opendir(path);
    if (!folder)
        return;
    while ((entry = readdir(folder))) {
        if (entry->d_name[0] == '.')
            continue;
        sprintf(path, "/proc/%d/fd/%s", pid, entry->d_name);
        length = readlink(path, target, sizeof target - 1);
        if (length < 0)
            continue;
        target[length] = 0;
        file = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY);
        say(pid, "descriptor %s %s %s", entry->d_name, target, file < 0 ? strerror(errno) : "opened");
        if (file >= 0)
            close(file);
    }
    closedir(folder);
}

static void look_at_folders(int pid)
{
    struct stat own, other;
    char path[64];

    sprintf(path, "/proc/%d/root/.", pid);
    if (!stat("/", &own) && !stat(path, &other))
        say(pid, "root %s", own.st_dev == other.st_dev && own.st_ino == other.st_ino ? "own" : "foreign");
    sprintf(path, "/proc/%d/cwd/.", pid);
    if (!stat(path, &other))
        say(pid, "cwd entered");
}

static void look_at_memory(int pid)
{
    static const char *names[] = {"environ", "maps", "auxv", "stack", "syscall", "io"};
    char path[64], text[512];
    int file;

    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        sprintf(path, "/proc/%d/%s", pid, names[i]);
        if (read_whole(path, text, sizeof text) > 0)
            say(pid, "read %s", names[i]);
    }
    sprintf(path, "/proc/%d/mem", pid);
    file = open(path, O_RDWR);
    if (file >= 0) {
        say(pid, "mem opened");
        close(file);
    }
}

static void look_at_program(int pid)
{
    char path[64], view[64];
    int file, again;

    sprintf(path, "/proc/%d/exe", pid);
    file = open(path, O_PATH);
    if (file < 0)
        return;
    say(pid, "exe held");
    sprintf(view, "/proc/self/fd/%d", file);
    again = open(view, O_WRONLY);
    if (again >= 0) {
        say(pid, "exe writable");
        close(again);
    }
    close(file);
}

/* Takes hold of the process, and says which capabilities it had at that time. */
static void seize(int pid)
{
    char path[64], text[4096], *permitted;

    if (ptrace(PTRACE_SEIZE, pid, 0, 0))
        return;
    ptrace(PTRACE_INTERRUPT, pid, 0, 0);
    waitpid(pid, 0, __WALL);
    sprintf(path, "/proc/%d/status", pid);
    if (read_whole(path, text, sizeof text) > 0 && (permitted = strstr(text, "CapPrm:\t")))
        say(pid, "seized %.16s", permitted + 8);
    look_at_descriptors(pid);
    ptrace(PTRACE_DETACH, pid, 0, 0);
}

int main(int argc, char **argv)
{
    int own = getpid(), pid;
    struct dirent *entry;
    DIR *proc;

    if (argc < 3 || !(seen = fopen(argv[2], "w")))
        return 1;
    while (access(argv[1], F_OK)) {
        proc = opendir("/proc");
        while (proc && (entry = readdir(proc))) {
            pid = atoi(entry->d_name);
            if (pid <= 0 || pid == own)
                continue;
            say(pid, "there");
            look_at_descriptors(pid);
            look_at_folders(pid);
            look_at_memory(pid);
            look_at_program(pid);
            seize(pid);
        }
        if (proc)
            closedir(proc);
        while (waitpid(-1, 0, WNOHANG | __WALL) > 0)
            ;
    }
    return 0;
}
