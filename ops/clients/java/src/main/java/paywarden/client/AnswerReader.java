package paywarden.client;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;

/** Reads one answer in HTTP/1.1, without sockets, and writes requests. */
final class AnswerReader {
    /**
     * To read the largest answer takes no more than a few milliseconds, since a host may send it just before the
     * deadline. Our own answers have some 2 KB.
     */
    static final int HEAD_BYTES_MAX = 16 * 1024, BODY_BYTES_MAX = 64 * 1024, CHUNKS_MAX = 1000;

    /** A chunk's size in hexadecimal digits, and its extensions. */
    private static final int CHUNK_LINE_MAX = 1024;

    private static final int UNKNOWN = -1;

    /** What came is no answer in HTTP/1.1, or too large. Its text holds nothing of it. */
    static final class NoAnswer extends IOException {
        private static final long serialVersionUID = 1L;

        NoAnswer() {
            super("not an answer in HTTP/1.1, or too large");
        }
    }

    /** What was received and not taken yet is data[begin..end). */
    private byte[] data = new byte[2048];

    private int begin, end;
    private boolean isHeadRead, isChunked;
    private int length = UNKNOWN;
    private ByteArrayOutputStream chunks;
    /** Bytes of heads that were read, those of interim answers among them; and chunks. */
    private int passed, chunkCount;

    int status;
    byte[] body = new byte[0];
    /** Whether the connection may be used again, and whether the host said that it will not be. */
    boolean keeps, saysClose;

    /** Returns a POST as bytes. The caller has checked that no header holds a control character. */
    static byte[] request(String path, String authority, List<String> headers, byte[] body) {
        StringBuilder head = new StringBuilder(400);
        head.append("POST ").append(path).append(" HTTP/1.1\r\nhost: ").append(authority);
        for (int place = 0; place < headers.size(); place += 2) {
            head.append("\r\n").append(headers.get(place)).append(": ").append(headers.get(place + 1));
        }
        head.append("\r\ncontent-length: ").append(body.length).append("\r\n\r\n");
        byte[] bytes = head.toString().getBytes(StandardCharsets.ISO_8859_1);
        byte[] request = Arrays.copyOf(bytes, bytes.length + body.length);
        System.arraycopy(body, 0, request, bytes.length, body.length);
        return request;
    }

    /** Takes what was received. Returns whether the answer is whole. */
    boolean feed(byte[] received, int count) throws NoAnswer {
        append(received, count);
        while (!isHeadRead) {
            int headEnd = find("\r\n\r\n", begin);
            int size = (headEnd < 0 ? end : headEnd) - begin;
            if (passed + size > HEAD_BYTES_MAX) {
                throw new NoAnswer();
            }
            if (headEnd < 0) {
                return false;
            }
            passed += size + 4;
            String head = new String(data, begin, headEnd - begin, StandardCharsets.ISO_8859_1);
            begin = headEnd + 4;
            readHead(head);
        }
        if (isChunked) {
            return readChunks();
        }
        if (length != UNKNOWN) {
            if (end - begin < length) {
                return false;
            }
            body = Arrays.copyOfRange(data, begin, begin + length);
            // Bytes beyond it are some that nobody asked for.
            keeps &= end - begin == length;
            return true;
        }
        if (end - begin > BODY_BYTES_MAX) {
            throw new NoAnswer();
        }
        return false;
    }

    /** Notes that the connection has ended. Returns whether that made the answer whole. */
    boolean end() {
        if (!isHeadRead || isChunked || length != UNKNOWN) {
            return false;
        }
        body = Arrays.copyOfRange(data, begin, end);
        keeps = false;
        return true;
    }

    private void append(byte[] received, int count) {
        if (data.length - end < count) {
            data = Arrays.copyOfRange(data, begin, begin + Math.max(2 * data.length, end - begin + count));
            end -= begin;
            begin = 0;
        }
        System.arraycopy(received, 0, data, end, count);
        end += count;
    }

    private int find(String wanted, int from) {
        for (int place = from; place <= end - wanted.length(); place++) {
            int matching = 0;
            while (matching < wanted.length() && data[place + matching] == wanted.charAt(matching)) {
                matching++;
            }
            if (matching == wanted.length()) {
                return place;
            }
        }
        return -1;
    }

    private void readHead(String head) throws NoAnswer {
        int firstEnd = head.indexOf("\r\n");
        String first = firstEnd < 0 ? head : head.substring(0, firstEnd);
        if (first.length() < 12
                || !(first.startsWith("HTTP/1.1 ") || first.startsWith("HTTP/1.0 "))
                || !isDigits(first.substring(9, 12))
                || (first.length() > 12 && first.charAt(12) != ' ')) {
            throw new NoAnswer();
        }
        status = Integer.parseInt(first.substring(9, 12));
        if (100 <= status && status < 200) {
            if (status == 101) {
                throw new NoAnswer();
            }
            return;
        }
        isHeadRead = true;
        String[] lines = head.split("\r\n", -1);
        boolean isKept = false;
        for (int place = 1; place < lines.length; place++) {
            int colon = lines[place].indexOf(':');
            String name = colon < 0 ? "" : lines[place].substring(0, colon);
            if (name.isEmpty() || !name.equals(name.strip())) {
                throw new NoAnswer();
            }
            String value = lines[place].substring(colon + 1).strip();
            if (name.equalsIgnoreCase("content-length")) {
                setLength(value);
            } else if (name.equalsIgnoreCase("transfer-encoding")) {
                if (isChunked || !value.equalsIgnoreCase("chunked")) {
                    throw new NoAnswer();
                }
                isChunked = true;
            } else if (name.equalsIgnoreCase("connection")) {
                for (String option : value.split(",")) {
                    saysClose |= option.strip().equalsIgnoreCase("close");
                    isKept |= option.strip().equalsIgnoreCase("keep-alive");
                }
            }
        }
        if (isChunked && length != UNKNOWN) {
            throw new NoAnswer();
        }
        if (status == 204 || status == 304) {
            length = 0;
            isChunked = false;
        }
        keeps = !saysClose && (first.charAt(7) == '1' || isKept);
    }

    private void setLength(String value) throws NoAnswer {
        // More digits than these are more than is taken.
        if (!isDigits(value) || value.length() > 9) {
            throw new NoAnswer();
        }
        int said = Integer.parseInt(value);
        if (said > BODY_BYTES_MAX || (length != UNKNOWN && length != said)) {
            throw new NoAnswer();
        }
        length = said;
    }

    private boolean readChunks() throws NoAnswer {
        if (chunks == null) {
            chunks = new ByteArrayOutputStream();
        }
        while (true) {
            int lineEnd = find("\r\n", begin);
            if (lineEnd < 0) {
                if (end - begin > CHUNK_LINE_MAX) {
                    throw new NoAnswer();
                }
                return false;
            }
            long size = sizeOf(new String(data, begin, lineEnd - begin, StandardCharsets.ISO_8859_1));
            if (lineEnd - begin > CHUNK_LINE_MAX || chunks.size() + size > BODY_BYTES_MAX) {
                throw new NoAnswer();
            }
            if (size == 0) {
                return readTrailers(lineEnd + 2);
            }
            int chunkEnd = lineEnd + 2 + (int) size;
            if (end < chunkEnd + 2) {
                return false;
            }
            if (data[chunkEnd] != '\r' || data[chunkEnd + 1] != '\n') {
                throw new NoAnswer();
            }
            if (++chunkCount > CHUNKS_MAX) {
                throw new NoAnswer();
            }
            chunks.write(data, lineEnd + 2, (int) size);
            begin = chunkEnd + 2;
        }
    }

    /** Returns the size that a chunk's line says. */
    private static long sizeOf(String line) throws NoAnswer {
        int extension = line.indexOf(';');
        String digits = (extension < 0 ? line : line.substring(0, extension)).strip();
        if (digits.isEmpty() || digits.length() > 8) {
            throw new NoAnswer();
        }
        long size = 0;
        for (int place = 0; place < digits.length(); place++) {
            // Other alphabets have digits, too.
            int digit = digits.charAt(place) < 128 ? Character.digit(digits.charAt(place), 16) : -1;
            if (digit < 0) {
                throw new NoAnswer();
            }
            size = 16 * size + digit;
        }
        return size;
    }

    private boolean readTrailers(int from) throws NoAnswer {
        int trailersEnd = end - from >= 2 && data[from] == '\r' && data[from + 1] == '\n' ? from + 2 : -1;
        if (trailersEnd < 0) {
            int found = find("\r\n\r\n", from);
            if ((found < 0 ? end : found) - from > HEAD_BYTES_MAX) {
                throw new NoAnswer();
            }
            if (found < 0) {
                return false;
            }
            trailersEnd = found + 4;
        }
        keeps &= trailersEnd == end;
        body = chunks.toByteArray();
        return true;
    }

    private static boolean isDigits(String text) {
        return !text.isEmpty() && text.chars().allMatch(character -> character >= '0' && character <= '9');
    }
}
