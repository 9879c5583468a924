/* Messages as the kernel's headers lay them out, for the tests of the Rust code beside this file: each as a line with a
 * name and its bytes in hexadecimal. The arguments are the numbers of two sockets. */
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/nbd.h>
#include <linux/netlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FAMILY 0x1d

static union {
	struct nlmsghdr header;
	unsigned char bytes[65536];
} message;

static void begin(uint16_t type, uint16_t flags, uint32_t sequence)
{
	memset(&message, 0, sizeof message);
	message.header.nlmsg_len = NLMSG_HDRLEN;
	message.header.nlmsg_type = type;
	message.header.nlmsg_flags = flags;
	message.header.nlmsg_seq = sequence;
}

static void add(const void *bytes, size_t length)
{
	memcpy(message.bytes + message.header.nlmsg_len, bytes, length);
	message.header.nlmsg_len += NLMSG_ALIGN(length);
}

static void generic(uint8_t command, uint8_t version)
{
	struct genlmsghdr header = { .cmd = command, .version = version };
	add(&header, sizeof header);
}

static void attribute(uint16_t type, const void *value, size_t length)
{
	struct nlattr header = { .nla_len = NLA_HDRLEN + length, .nla_type = type };
	add(&header, sizeof header);
	add(value, length);
}

static void number32(uint16_t type, uint32_t value) { attribute(type, &value, sizeof value); }
static void number64(uint16_t type, uint64_t value) { attribute(type, &value, sizeof value); }
static void text(uint16_t type, const char *value) { attribute(type, value, strlen(value) + 1); }

static size_t open_nest(uint16_t type)
{
	size_t start = message.header.nlmsg_len;
	attribute(type | NLA_F_NESTED, NULL, 0);
	return start;
}

static void close_nest(size_t start)
{
	struct nlattr *header = (struct nlattr *)(message.bytes + start);
	header->nla_len = message.header.nlmsg_len - start;
}

static void print(const char *name)
{
	printf("%s ", name);
	for (uint32_t index = 0; index < message.header.nlmsg_len; index++)
		printf("%02x", message.bytes[index]);
	printf("\n");
}

static void sockets(const uint32_t *fds, int count)
{
	size_t list = open_nest(NBD_ATTR_SOCKETS);
	for (int index = 0; index < count; index++) {
		size_t item = open_nest(NBD_SOCK_ITEM);
		number32(NBD_SOCK_FD, fds[index]);
		close_nest(item);
	}
	close_nest(list);
}

static void device(uint32_t index, uint8_t connected)
{
	size_t item = open_nest(NBD_DEVICE_ITEM);
	number32(NBD_DEVICE_INDEX, index);
	attribute(NBD_DEVICE_CONNECTED, &connected, sizeof connected);
	close_nest(item);
}

/* An error in answer to a request with a header and an attribute of its own. */
static void error(int code, int capped, const char *words)
{
	int32_t number = -code;
	begin(NLMSG_ERROR, (capped ? NLM_F_CAPPED : 0) | (words ? NLM_F_ACK_TLVS : 0), 1);
	add(&number, sizeof number);
	struct nlmsghdr request = { .nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN + 8, .nlmsg_seq = 1 };
	add(&request, sizeof request);
	if (!capped) {
		generic(NBD_CMD_DISCONNECT, NBD_GENL_VERSION);
		number32(NBD_ATTR_INDEX, 7);
	}
	if (words) {
		number32(NLMSGERR_ATTR_OFFS, 20);
		text(NLMSGERR_ATTR_MSG, words);
	}
}

int main(int argc, char **argv)
{
	const uint16_t flags = NLM_F_REQUEST | NLM_F_ACK;
	if (argc != 3)
		return 1;
	const uint32_t fds[] = { atoi(argv[1]), atoi(argv[2]) };

	begin(GENL_ID_CTRL, flags, 1);
	generic(CTRL_CMD_GETFAMILY, 1);
	text(CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME);
	print("get-family");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_CONNECT, NBD_GENL_VERSION);
	number64(NBD_ATTR_SIZE_BYTES, 0x7fffffffffffffff);
	number64(NBD_ATTR_BLOCK_SIZE_BYTES, 512);
	number64(NBD_ATTR_TIMEOUT, 60);
	number64(NBD_ATTR_SERVER_FLAGS,
		 NBD_FLAG_HAS_FLAGS | NBD_FLAG_READ_ONLY | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA |
			 NBD_FLAG_SEND_TRIM | NBD_FLAG_CAN_MULTI_CONN);
	number64(NBD_ATTR_CLIENT_FLAGS, 0);
	sockets(fds, 2);
	number64(NBD_ATTR_DEAD_CONN_TIMEOUT, 300);
	text(NBD_ATTR_BACKEND_IDENTIFIER, "nbd://host/disk");
	print("connect-any");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_CONNECT, NBD_GENL_VERSION);
	number32(NBD_ATTR_INDEX, 15);
	number64(NBD_ATTR_SIZE_BYTES, 1024);
	number64(NBD_ATTR_BLOCK_SIZE_BYTES, 4096);
	number64(NBD_ATTR_TIMEOUT, 1);
	number64(NBD_ATTR_SERVER_FLAGS, NBD_FLAG_HAS_FLAGS);
	number64(NBD_ATTR_CLIENT_FLAGS,
		 NBD_CFLAG_DESTROY_ON_DISCONNECT | NBD_CFLAG_DISCONNECT_ON_CLOSE);
	sockets(fds, 1);
	number64(NBD_ATTR_DEAD_CONN_TIMEOUT, 0);
	text(NBD_ATTR_BACKEND_IDENTIFIER, "");
	print("connect-one");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_RECONFIGURE, NBD_GENL_VERSION);
	number32(NBD_ATTR_INDEX, 2);
	number64(NBD_ATTR_SIZE_BYTES, 4096);
	sockets(fds, 1);
	text(NBD_ATTR_BACKEND_IDENTIFIER, "nbd://host/disk");
	print("reconfigure");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_RECONFIGURE, NBD_GENL_VERSION);
	number32(NBD_ATTR_INDEX, 2);
	number64(NBD_ATTR_SIZE_BYTES, 4096);
	text(NBD_ATTR_BACKEND_IDENTIFIER, "nbd://host/disk");
	print("resize");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_DISCONNECT, NBD_GENL_VERSION);
	number32(NBD_ATTR_INDEX, 7);
	print("disconnect");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_STATUS, NBD_GENL_VERSION);
	print("status-all");

	begin(FAMILY, flags, 1);
	generic(NBD_CMD_STATUS, NBD_GENL_VERSION);
	number32(NBD_ATTR_INDEX, 7);
	print("status-one");

	/* What the kernel answers. */
	begin(GENL_ID_CTRL, 0, 1);
	generic(CTRL_CMD_NEWFAMILY, 2);
	text(CTRL_ATTR_FAMILY_NAME, NBD_GENL_FAMILY_NAME);
	uint16_t id = FAMILY;
	attribute(CTRL_ATTR_FAMILY_ID, &id, sizeof id);
	number32(CTRL_ATTR_VERSION, NBD_GENL_VERSION);
	number32(CTRL_ATTR_MAXATTR, NBD_ATTR_MAX);
	size_t groups = open_nest(CTRL_ATTR_MCAST_GROUPS);
	size_t group = open_nest(1);
	number32(CTRL_ATTR_MCAST_GRP_ID, 4);
	text(CTRL_ATTR_MCAST_GRP_NAME, NBD_GENL_MCAST_GROUP_NAME);
	close_nest(group);
	close_nest(groups);
	print("answer-family");

	begin(FAMILY, 0, 1);
	generic(NBD_CMD_CONNECT, NBD_GENL_VERSION);
	number32(NBD_ATTR_INDEX, 3);
	print("answer-connect");

	begin(FAMILY, 0, 1);
	generic(NBD_CMD_STATUS, NBD_GENL_VERSION);
	size_t list = open_nest(NBD_ATTR_DEVICE_LIST);
	device(7, 1);
	device(0, 0);
	device(300, 1);
	close_nest(list);
	print("answer-status");

	begin(FAMILY, 0, 1);
	generic(NBD_CMD_STATUS, NBD_GENL_VERSION);
	list = open_nest(NBD_ATTR_DEVICE_LIST);
	close_nest(list);
	print("answer-status-none");

	begin(NLMSG_DONE, NLM_F_MULTI, 1);
	int32_t zero = 0;
	add(&zero, sizeof zero);
	print("done");

	begin(NLMSG_NOOP, 0, 1);
	print("noop");

	error(0, 1, NULL);
	print("ack-capped");
	error(0, 0, NULL);
	print("ack");
	error(1, 0, NULL);
	print("refused-eperm");
	error(16, 1, "device already in use");
	print("refused-ebusy-capped");
	error(22, 0, "backend image doesn't match");
	print("refused-einval");
	return 0;
}
