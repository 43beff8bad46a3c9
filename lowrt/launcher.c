/* lowrt: starts the interpreter with lowrt's own package, from a read-only view of its file.
 *
 * What the interpreter forks becomes containers, and a container of root can open its first process's /proc/PID/exe for
 * writing: CVE-2019-5736. Through a mount that is read-only, and that is in no tree, it cannot. The view costs 0.1 ms here;
 * made by the interpreter itself it would cost a second start of it.
 *
 * Without the privilege to make the view (rootless) the interpreter's file is not the user's to write either.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/mount.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef PYTHON
#define PYTHON "/usr/bin/python3"
#endif

static int read_only_view(void) {
	struct mount_attr attributes = {.attr_set = MOUNT_ATTR_RDONLY};
	int view = syscall(SYS_open_tree, AT_FDCWD, PYTHON, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);

	if (view >= 0 && syscall(SYS_mount_setattr, view, "", AT_EMPTY_PATH, &attributes, sizeof attributes) < 0) {
		close(view);
		return -1;
	}
	return view;
}

int main(int count, char **given, char **environment) {
	static const char file[] = "__main__.py";
	char program[4096 + sizeof file];
	ssize_t length = readlink("/proc/self/exe", program, 4096);
	char *arguments[count + 3], *slash;
	int view;

	if (length <= 0 || !(slash = memrchr(program, '/', length))) {
		perror("lowrt: /proc/self/exe (is /proc mounted?)");
		return 1;
	}
	memcpy(slash + 1, file, sizeof file);
	/* -I and -S: nothing of the environment, and no site-packages. */
	arguments[0] = PYTHON;
	arguments[1] = "-IS";
	arguments[2] = program;
	for (int i = 1; i <= count; i++) /* with the NULL at the end */
		arguments[i + 2] = given[i];
	view = read_only_view();
	if (view >= 0)
		syscall(SYS_execveat, view, "", arguments, environment, AT_EMPTY_PATH);
	execve(PYTHON, arguments, environment);
	perror("lowrt: cannot start " PYTHON);
	return 1;
}
