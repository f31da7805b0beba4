package paywarden.client;

import java.util.List;
import java.util.Map;

/** What statuses and bodies of the service mean. */
final class Answers {
    static final String LATE = "late", BUSY = "busy", UNREACHABLE = "unreachable", BROKEN = "broken";
    static final String OVERLOADED = "overloaded", UNAVAILABLE = "unavailable", UNAUTHORIZED = "unauthorized";
    static final String FAILED = "failed", CLOSED = "closed";

    private static final int MESSAGE_MAX = 300;
    /** The largest whole number that all languages read exactly. */
    private static final long WHOLE_MAX = (1L << 53) - 1;

    private Answers() {}

    /** How a call ends: with one of the three. */
    record End(Decision decision, String cause, WrongRequest refusal) {
        static End of(Decision decision) {
            return new End(decision, "", null);
        }

        static End of(String cause) {
            return new End(null, cause, null);
        }

        static End of(WrongRequest refusal) {
            return new End(null, "refused", refusal);
        }
    }

    static End read(String paymentId, int status, byte[] body) {
        switch (status) {
            case 200:
                Decision decision = decisionOf(paymentId, objectOf(body));
                return decision == null ? End.of(FAILED) : End.of(decision);
            case 400, 409, 413, 415:
                return End.of(refusalOf(status, objectOf(body)));
            case 401, 403:
                return End.of(UNAUTHORIZED);
            case 429:
                return End.of(OVERLOADED);
            case 503:
                return End.of(UNAVAILABLE);
            case 504:
                return End.of(LATE);
            default:
                return End.of(FAILED);
        }
    }

    /** Returns the decision of a body; null if it is none, or about another payment. Unknown names are skipped. */
    private static Decision decisionOf(String paymentId, Map<?, ?> found) {
        Object score = or(found, "score", 0.0), age = found.get("profile_age_ms");
        Object decisionId = or(found, "decision_id", ""), version = or(found, "model_version", "");
        List<String> reasons = textsOf(or(found, "reasons", List.of())), flags = textsOf(or(found, "flags", List.of()));
        if (!paymentId.equals(found.get("payment_id"))
                || !(found.get("action") instanceof String action)
                || !Decision.ACTIONS.contains(action)
                || !Json.isNumber(score)
                || !(((Number) score).doubleValue() >= 0 && ((Number) score).doubleValue() <= 1)
                || !(decisionId instanceof String)
                || !(version instanceof String)
                || reasons == null
                || flags == null) {
            return null;
        }
        Long ageMs = null;
        if (age != null) {
            double whole = Json.isNumber(age) ? ((Number) age).doubleValue() : Double.NaN;
            if (!(Math.abs(whole) <= WHOLE_MAX && whole == Math.rint(whole))) {
                return null;
            }
            ageMs = ((Number) age).longValue();
        }
        double probability = ((Number) score).doubleValue();
        return new Decision(
                paymentId, action, (String) decisionId, probability, reasons, (String) version, flags, ageMs, false);
    }

    private static WrongRequest refusalOf(int status, Map<?, ?> body) {
        Map<?, ?> error = body.get("error") instanceof Map<?, ?> found ? found : Map.of();
        String code = error.get("code") instanceof String text && !text.isEmpty() ? text : "refused";
        String field = error.get("field") instanceof String text ? text : "";
        String message =
                error.get("message") instanceof String text && !text.isEmpty()
                        ? text
                        : "was refused with status " + status;
        return new WrongRequest(cut(message), cut(field), cut(code), status);
    }

    private static String cut(String text) {
        int count = text.codePointCount(0, text.length());
        return count <= MESSAGE_MAX ? text : text.substring(0, text.offsetByCodePoints(0, MESSAGE_MAX));
    }

    private static Map<?, ?> objectOf(byte[] body) {
        try {
            return Json.parse(body) instanceof Map<?, ?> found ? found : Map.of();
        } catch (Json.NotJson error) {
            return Map.of();
        }
    }

    private static Object or(Map<?, ?> found, String name, Object missing) {
        return found.containsKey(name) ? found.get(name) : missing;
    }

    private static List<String> textsOf(Object value) {
        if (!(value instanceof List<?> list) || !list.stream().allMatch(String.class::isInstance)) {
            return null;
        }
        return list.stream().map(String.class::cast).toList();
    }
}
