package paywarden.client;

import java.nio.ByteBuffer;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON, read and written. An object is a {@code Map<String, Object>}, an array a {@code List<Object>}, a whole number a
 * {@code Long} if it fits, any other a {@code Double}, and null is null.
 */
final class Json {
    private static final int DEPTH_MAX = 200;

    /** A text that is no JSON. It holds nothing of the text. */
    static final class NotJson extends Exception {
        private static final long serialVersionUID = 1L;

        NotJson() {
            super("not JSON in UTF-8", null, false, false);
        }
    }

    private final String text;
    private int at;
    private int depth;

    private Json(String text) {
        this.text = text;
    }

    static Object parse(byte[] body) throws NotJson {
        try {
            return parse(StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(body)).toString());
        } catch (CharacterCodingException error) {
            throw new NotJson();
        }
    }

    static Object parse(String text) throws NotJson {
        Json reader = new Json(text);
        Object found = reader.value();
        if (reader.next() != 0) {
            throw new NotJson();
        }
        return found;
    }

    /** Returns the next character that is no white space, without taking it; 0 at the end. */
    private char next() {
        while (at < text.length()) {
            char character = text.charAt(at);
            if (character != ' ' && character != '\n' && character != '\r' && character != '\t') {
                return character;
            }
            at++;
        }
        return 0;
    }

    private void take(char wanted) throws NotJson {
        if (next() != wanted) {
            throw new NotJson();
        }
        at++;
    }

    private Object value() throws NotJson {
        if (++depth > DEPTH_MAX) {
            throw new NotJson();
        }
        Object found =
                switch (next()) {
                    case '{' -> object();
                    case '[' -> array();
                    case '"' -> string();
                    case 't' -> word("true", true);
                    case 'f' -> word("false", false);
                    case 'n' -> word("null", null);
                    default -> number();
                };
        depth--;
        return found;
    }

    private Map<String, Object> object() throws NotJson {
        Map<String, Object> found = new LinkedHashMap<>();
        take('{');
        if (next() == '}') {
            at++;
            return found;
        }
        while (true) {
            next();
            String name = string();
            take(':');
            found.put(name, value());
            if (next() == '}') {
                at++;
                return found;
            }
            take(',');
        }
    }

    private List<Object> array() throws NotJson {
        List<Object> found = new ArrayList<>();
        take('[');
        if (next() == ']') {
            at++;
            return found;
        }
        while (true) {
            found.add(value());
            if (next() == ']') {
                at++;
                return found;
            }
            take(',');
        }
    }

    private Object word(String word, Object meaning) throws NotJson {
        if (!text.startsWith(word, at)) {
            throw new NotJson();
        }
        at += word.length();
        return meaning;
    }

    private String string() throws NotJson {
        take('"');
        int begin = at;
        int plain = at;
        while (plain < text.length() && text.charAt(plain) != '"' && text.charAt(plain) != '\\') {
            if (text.charAt(plain++) < ' ') {
                throw new NotJson();
            }
        }
        if (plain < text.length() && text.charAt(plain) == '"') {
            at = plain + 1;
            return text.substring(begin, plain);
        }
        StringBuilder found = new StringBuilder();
        while (at < text.length()) {
            char character = text.charAt(at++);
            if (character == '"') {
                return found.toString();
            }
            if (character < ' ') {
                throw new NotJson();
            }
            found.append(character == '\\' ? escaped() : character);
        }
        throw new NotJson();
    }

    private char escaped() throws NotJson {
        if (at == text.length()) {
            throw new NotJson();
        }
        switch (text.charAt(at++)) {
            case '"':
                return '"';
            case '\\':
                return '\\';
            case '/':
                return '/';
            case 'b':
                return '\b';
            case 'f':
                return '\f';
            case 'n':
                return '\n';
            case 'r':
                return '\r';
            case 't':
                return '\t';
            case 'u':
                int code = 0;
                for (int count = 0; count < 4; count++) {
                    int digit = at < text.length() ? Character.digit(text.charAt(at), 16) : -1;
                    if (digit < 0 || text.charAt(at++) > 'f') {
                        throw new NotJson();
                    }
                    code = 16 * code + digit;
                }
                return (char) code;
            default:
                throw new NotJson();
        }
    }

    private Object number() throws NotJson {
        int begin = at;
        if (at < text.length() && text.charAt(at) == '-') {
            at++;
        }
        boolean isZero = at < text.length() && text.charAt(at) == '0';
        if (digits() > 1 && isZero) {
            throw new NotJson();
        }
        boolean isWhole = true;
        if (at < text.length() && text.charAt(at) == '.') {
            at++;
            digits();
            isWhole = false;
        }
        if (at < text.length() && (text.charAt(at) == 'e' || text.charAt(at) == 'E')) {
            at++;
            if (at < text.length() && (text.charAt(at) == '+' || text.charAt(at) == '-')) {
                at++;
            }
            digits();
            isWhole = false;
        }
        String literal = text.substring(begin, at);
        // A Long has at most 18 digits that all fit.
        return isWhole && literal.length() <= 18 ? (Object) Long.valueOf(literal) : Double.valueOf(literal);
    }

    private int digits() throws NotJson {
        int begin = at;
        while (at < text.length() && text.charAt(at) >= '0' && text.charAt(at) <= '9') {
            at++;
        }
        if (at == begin) {
            throw new NotJson();
        }
        return at - begin;
    }

    /** Appends a value as JSON. Raises IllegalArgumentException for a value that is none. */
    static void write(StringBuilder out, Object value) {
        if (value instanceof String string) {
            writeText(out, string);
        } else if (value instanceof Map<?, ?> map) {
            char before = '{';
            for (Map.Entry<?, ?> entry : map.entrySet()) {
                out.append(before);
                writeText(out, (String) entry.getKey());
                write(out.append(':'), entry.getValue());
                before = ',';
            }
            out.append(before == '{' ? "{}" : "}");
        } else if (value instanceof List<?> list) {
            char before = '[';
            for (Object each : list) {
                write(out.append(before), each);
                before = ',';
            }
            out.append(before == '[' ? "[]" : "]");
        } else if (value == null || value instanceof Boolean || isNumber(value)) {
            out.append(value);
        } else {
            throw new IllegalArgumentException("no JSON");
        }
    }

    static boolean isNumber(Object value) {
        return value instanceof Long
                || value instanceof Integer
                || (value instanceof Double number && Double.isFinite(number));
    }

    static void writeText(StringBuilder out, String text) {
        out.append('"');
        for (int place = 0; place < text.length(); place++) {
            char character = text.charAt(place);
            if (character == '"' || character == '\\') {
                out.append('\\').append(character);
            } else if (character < ' ' || character == 0x7f) {
                out.append(String.format("\\u%04x", (int) character));
            } else {
                out.append(character);
            }
        }
        out.append('"');
    }
}
